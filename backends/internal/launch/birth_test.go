package launch

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// nobody is a user without any rights.
var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

// ranAsNobody runs the test once more as nobody if this is root, and says so:
// then the caller has nothing left to do.
func ranAsNobody(t *testing.T) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	again(t, t.Name(), nil, nobody, nil)
	return true
}

// again runs the test called name in a fresh process of this binary, by way of
// a command line if there is one, and fails if that fails.
func again(t *testing.T, name string, by []string, credential *syscall.Credential, files []*os.File, environment ...string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "launch")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	binary := filepath.Join(dir, "launch.test")
	copyFile(t, "/proc/self/exe", binary)
	scratch := filepath.Join(dir, "tmp")
	require.NoError(t, os.Mkdir(scratch, 0o777))
	require.NoError(t, os.Chmod(scratch, 0o777))

	line := append(by, binary, "-test.run=^"+name+"$", "-test.v", "-test.timeout=60s")
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + scratch}, environment...)
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: "+name)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
}

// born starts req with sleep(1) as its program and returns the child.
func born(t *testing.T, change func(*Request)) *Child {
	t.Helper()
	req := request("/bin/sleep", "1000")
	if change != nil {
		change(&req)
	}
	return run(t, newWatcher(t), req)
}

func TestBirth(t *testing.T) {
	log := filepath.Join(t.TempDir(), "web.log")
	c := born(t, func(r *Request) {
		r.Launch.LogFile = log
		r.Launch.Spec.Environment = map[string]string{"TZ": "UTC"}
		r.Launch.Spec.WorkingDirectory = "/usr"
		r.Launch.Limits[service.NoFile] = service.Of(512)
		r.Brand = 1<<62 | 77
	})
	pid := c.PID()

	hasDescriptors(t, pid, map[string]string{"0": "/dev/null r", "1": log + " wa", "2": log + " wa"})
	require.Equal(t, "PATH="+Path+"\x00TZ=UTC\x00", readProc(t, pid, "environ"))
	require.Equal(t, "/bin/sleep\x001000\x00", readProc(t, pid, "cmdline"))
	cwd, err := os.Readlink(procPath(pid) + "/cwd")
	require.NoError(t, err)
	require.Equal(t, "/usr", cwd)

	status := statusOf(t, pid)
	all := statusOf(t, os.Getpid())["CapBnd"]
	require.Equal(t, "0022", status["Umask"])
	require.Equal(t, "1", status["NoNewPrivs"])
	for _, name := range []string{"SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "CapInh", "CapAmb"} {
		require.Equal(t, "0000000000000000", status[name], name)
	}
	uid, caps, groups := "0 0 0 0", all, "0"
	if os.Geteuid() != 0 {
		uid, caps, groups = strings.TrimSpace(strings.Repeat(strconv.Itoa(os.Getuid())+" ", 4)), "0000000000000000", statusOf(t, os.Getpid())["Groups"]
	}
	require.Equal(t, uid, status["Uid"])
	require.Equal(t, uid, status["Gid"])
	require.Equal(t, groups, status["Groups"])
	require.Equal(t, caps, status["CapPrm"])
	require.Equal(t, caps, status["CapEff"])
	require.Equal(t, all, status["CapBnd"])

	stat := strings.Fields(readProc(t, pid, "stat"))
	require.Equal(t, strconv.Itoa(pid), stat[4], "process group")
	require.Equal(t, strconv.Itoa(pid), stat[5], "session")
	require.Equal(t, "0", stat[6], "terminal")

	require.Equal(t, "0\n", readProc(t, pid, "oom_score_adj"))
	niceness := "0"
	if os.Geteuid() != 0 { // who may not undo it
		niceness = strings.Fields(readProc(t, os.Getpid(), "stat"))[18]
	}
	require.Equal(t, niceness, stat[18], "niceness")
	require.Equal(t, "0", stat[40], "scheduling policy")
	require.Equal(t, "50000\n", readTimerSlack(t, pid))
	cpus, err := os.ReadFile("/sys/devices/system/cpu/online")
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(cpus)), status["Cpus_allowed_list"])

	start, err := strconv.ParseUint(stat[21], 10, 64)
	require.NoError(t, err)
	brand := strconv.FormatUint(Self(pid, start), 10) + " " + strconv.Itoa(1<<62|77)
	require.Equal(t, map[string]string{
		"Max cpu time":         "unlimited unlimited",
		"Max file size":        "unlimited unlimited",
		"Max data size":        "unlimited unlimited",
		"Max stack size":       "8388608 unlimited",
		"Max core file size":   "0 0",
		"Max resident set":     "unlimited unlimited",
		"Max open files":       "512 512",
		"Max address space":    "unlimited unlimited",
		"Max file locks":       "unlimited unlimited",
		"Max realtime timeout": brand,
	}, limitsOf(t, pid))
}

func TestBirthFromAPlainUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestBirth does that already")
	}
	again(t, "TestBirth", nil, nobody, nil)
}

// TestBirthFromAMessyAgent starts from an agent that has inherited leaked
// descriptors, secrets, ignored and blocked signals and a umask, and as root
// also niceness, limits, groups and capabilities.
func TestBirthFromAMessyAgent(t *testing.T) {
	var leaks []*os.File
	for range 20 {
		file, err := os.Open("/etc/passwd")
		require.NoError(t, err)
		defer file.Close()
		leaks = append(leaks, file)
	}
	environment := []string{"SECRET_TOKEN=hush", "LD_BIND_NOW=1", "GODEBUG=madvdontneed=1"}
	signals := []string{
		"env", "--ignore-signal=HUP,INT,PIPE,CHLD,USR1,USR2,TSTP,TTOU,XFSZ", "--block-signal=TERM,USR1,CHLD,WINCH,IO",
		"sh", "-c", `umask 077; exec "$@"`, "sh",
	}
	t.Run("plain user", func(t *testing.T) {
		var as *syscall.Credential
		if os.Geteuid() == 0 {
			as = nobody
		}
		again(t, "TestBirth", signals, as, leaks, environment...)
		// Who ignores SIGCHLD would be told of no exit.
		again(t, "TestProgramRunsAndItsExitIsExact", signals, as, leaks, environment...)
	})
	t.Run("root", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can be undone all of this")
		}
		hard := "" // as it is: without this capability it could not be undone
		caps, err := strconv.ParseUint(statusOf(t, os.Getpid())["CapEff"], 16, 64)
		require.NoError(t, err)
		if caps&(1<<unix.CAP_SYS_RESOURCE) != 0 {
			hard = "2000000000"
		}
		rights := []string{
			"setpriv", "--inh-caps=+chown,+kill", "--ambient-caps=+chown,+kill", "--groups=1,2,3",
			"prlimit", "--cpu=1000:" + hard, "--stack=1048576:" + hard, "--nofile=600:", "--fsize=1000000000:" + hard,
			"--core=1000:", "--locks=10:" + hard, "--memlock=65536:", "--sigpending=100:",
			"nice", "-n", "7", "taskset", "-c", "0", "ionice", "-c", "3", "choom", "-n", "300", "--",
		}
		again(t, "TestBirth", append(rights, signals...), nil, leaks, environment...)
	})
}

func TestBirthAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may become another user")
	}
	for _, row := range []struct {
		user, group string
		uid, gid    string
		groups      string
	}{
		{"nobody", "", "65534", "65534", "65534"},
		{"65534", "", "65534", "65534", "65534"},
		{"nobody", "daemon", "65534", "1", "1"},
		{"", "daemon", "0", "1", "1"},
		{"12345", "23456", "12345", "23456", "23456"},
	} {
		t.Run(row.user+":"+row.group, func(t *testing.T) {
			c := born(t, func(r *Request) { r.Launch.Spec.User, r.Launch.Spec.Group = row.user, row.group })
			status := statusOf(t, c.PID())
			four := func(id string) string { return strings.Join([]string{id, id, id, id}, " ") }
			require.Equal(t, four(row.uid), status["Uid"])
			require.Equal(t, four(row.gid), status["Gid"])
			require.Equal(t, row.groups, status["Groups"])
			if row.uid != "0" {
				for _, name := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
					require.Equal(t, "0000000000000000", status[name], name)
				}
			}
			require.Equal(t, "0\n", readProc(t, c.PID(), "oom_score_adj"))
		})
	}
}

func TestBirthByDefinition(t *testing.T) {
	c := born(t, func(r *Request) {
		r.Launch.Spec.Umask = 0o027
		r.Launch.Spec.OOMScoreAdj = 250
		r.Launch.Spec.AllowNewPrivs = true
		r.Launch.Spec.Environment = map[string]string{"PATH": "/opt/bin"}
	})
	status := statusOf(t, c.PID())
	require.Equal(t, "0027", status["Umask"])
	require.Equal(t, "0", status["NoNewPrivs"])
	require.Equal(t, "250\n", readProc(t, c.PID(), "oom_score_adj"))
	require.Equal(t, "PATH=/opt/bin\x00", readProc(t, c.PID(), "environ"))
	hasDescriptors(t, c.PID(), map[string]string{"0": "/dev/null r", "1": "/dev/null w", "2": "/dev/null w"})
	limits := limitsOf(t, c.PID())
	hard := unix.Rlimit{}
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &hard))
	require.Equal(t, fmt.Sprintf("%d %d", min(1024, hard.Max), hard.Max), limits["Max open files"])
	require.Equal(t, "unlimited unlimited", limits["Max realtime timeout"])
}

// hasDescriptors wants pid to have the descriptors want: where each leads and
// how it was opened. For a moment the loader of a program has others of its
// own, while what is handed down stays.
func hasDescriptors(t *testing.T, pid int, want map[string]string) {
	t.Helper()
	var found map[string]string
	same := func() bool {
		found = descriptors(pid)
		return maps.Equal(found, want)
	}
	require.Eventually(t, same, deadline, 5*time.Millisecond, "%v", lazy(func() string { return fmt.Sprint(found) }))
}

// lazy is text that is made only when it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

func descriptors(pid int) map[string]string {
	found := map[string]string{}
	dir := procPath(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			target = err.Error()
		}
		info, _ := os.ReadFile(procPath(pid) + "/fdinfo/" + entry.Name())
		_, rest, _ := strings.Cut(string(info), "flags:")
		octal, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		flags, _ := strconv.ParseInt(octal, 8, 64)
		mode := map[int64]string{unix.O_RDONLY: " r", unix.O_WRONLY: " w", unix.O_RDWR: " rw"}[flags&unix.O_ACCMODE]
		if flags&unix.O_APPEND != 0 {
			mode += "a"
		}
		if flags&unix.O_NONBLOCK != 0 {
			mode += "n"
		}
		found[entry.Name()] = target + mode
	}
	return found
}

func readProc(t *testing.T, pid int, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(procPath(pid), file))
	require.NoError(t, err)
	return string(data)
}

// readTimerSlack falls back on the expected value where a plain user may not
// read it.
func readTimerSlack(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(procPath(pid), "timerslack_ns"))
	if errors.Is(err, unix.EPERM) || errors.Is(err, os.ErrPermission) {
		return "50000\n"
	}
	require.NoError(t, err)
	return string(data)
}

// limitsOf reads soft and hard limits, but for those of which the host decides
// the hard one.
func limitsOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	limits := map[string]string{}
	for line := range strings.Lines(readProc(t, pid, "limits")) {
		if len(line) < 68 || !strings.HasPrefix(line, "Max ") {
			continue
		}
		limits[strings.TrimSpace(line[:26])] = strings.TrimSpace(line[26:47]) + " " + strings.TrimSpace(line[47:68])
	}
	for _, name := range []string{"Max processes", "Max locked memory", "Max pending signals", "Max msgqueue size", "Max nice priority", "Max realtime priority"} {
		delete(limits, name)
	}
	return limits
}
