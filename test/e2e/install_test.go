package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
	"github.com/gladsheim/gladsheim/units"
)

// What docs/installing.md says, and TestInstallingIsAsDocumented holds to that.
const (
	installPrograms = `install -m 755 bin/gladsheimd bin/gladsheim /usr/bin/
install -d -m 755 /etc/gladsheim/services.d
`
	installUnits = `install -D -m 644 units/files/gladsheim.conf /etc/sysusers.d/gladsheim.conf
systemd-sysusers /etc/sysusers.d/gladsheim.conf
install -m 644 units/files/gladsheimd.service units/files/gladsheim.slice /etc/systemd/system/
systemctl daemon-reload
systemctl enable --now gladsheimd
gladsheim doctor
`
	installElsewhere = `groupadd -r gladsheim
gladsheimd
`
	upgrade = `install -m 755 bin/gladsheimd bin/gladsheim /usr/bin/
install -m 644 units/files/gladsheimd.service units/files/gladsheim.slice /etc/systemd/system/
systemctl daemon-reload
systemctl restart gladsheimd
`
	remove = `systemctl disable --now gladsheimd
systemctl stop gladsheim.slice
rm /usr/bin/gladsheimd /usr/bin/gladsheim /etc/systemd/system/gladsheimd.service /etc/systemd/system/gladsheim.slice
systemctl daemon-reload
`
)

func TestInstallingIsAsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/installing.md")
	if os.IsNotExist(err) {
		t.Skip("this needs the tree, which the test hosts do not have")
	}
	require.NoError(t, err)
	for _, block := range []string{installPrograms, installUnits, installElsewhere, upgrade, remove} {
		require.Contains(t, string(doc), block)
	}
}

// tree is what of a checkout is installed, after `make build`.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "units/files"), 0o755))
	for name, text := range map[string]string{
		"gladsheimd.service": units.Service, "gladsheim.slice": units.SliceUnit, "gladsheim.conf": units.Sysusers,
	} {
		writeFile(t, filepath.Join(dir, "units/files", name), []byte(text))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	for _, name := range []string{"gladsheimd", "gladsheim"} {
		path, err := exec.LookPath(name)
		require.NoError(t, err)
		program, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "bin", name), program, 0o755))
	}
	return dir
}

// sh runs a script in a directory, with what is installed first in PATH.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	code, out := tryAs(t, dir, nil, script)
	require.Zero(t, code, "%s\n%s", script, out)
	return strings.TrimSpace(out)
}

// tryAs is sh as somebody else, with its exit code. nil is oneself.
func tryAs(t *testing.T, dir string, who *syscall.Credential, script string) (code int, out string) {
	t.Helper()
	cmd := exec.CommandContext(contextFor(t), "sh", "-ec", script)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	text, err := cmd.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), string(text)
}

// groupReaches checks that members of the group, and they alone, reach the
// agent where it is by default.
func groupReaches(t *testing.T) {
	t.Helper()
	require.Equal(t, "root:gladsheim 750", sh(t, "/", "stat -c '%U:%G %a' /run/gladsheim"))
	require.Equal(t, "root:gladsheim 660", sh(t, "/", "stat -c '%U:%G %a' /run/gladsheim/gladsheim.sock"))
	const nobody = 65534
	found, err := user.LookupGroup("gladsheim")
	require.NoError(t, err)
	gid, err := strconv.ParseUint(found.Gid, 10, 32)
	require.NoError(t, err)
	group := uint32(gid)
	code, out := tryAs(t, "/", &syscall.Credential{Uid: nobody, Gid: nobody, Groups: []uint32{group}}, "gladsheim list")
	require.Zero(t, code, out)
	code, out = tryAs(t, "/", &syscall.Credential{Uid: nobody, Gid: nobody}, "gladsheim list")
	require.Equal(t, 5, code, out)
	require.Contains(t, out, "join the group gladsheim")
}

// TestTheInstalledUnit: installed as documented, the agent is run by systemd,
// comes back after a crash, and takes no service along when it goes.
func TestTheInstalledUnit(t *testing.T) {
	if !offers(t, "systemd") {
		t.Skip("this belongs on hosts with systemd")
	}
	dir := tree(t)
	sh(t, dir, installPrograms)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(tryAs(t, "/", nil, "journalctl -u gladsheimd --no-pager | tail -50"))
		}
		_, _ = tryAs(t, "/", nil, "gladsheim list -o json | jq -r '.services[].serviceName' | xargs -r gladsheim kill")
		sh(t, "/", remove+"rm -r /etc/gladsheim /etc/sysusers.d/gladsheim.conf /var/lib/gladsheim /run/gladsheim /var/log/gladsheim ")
	})
	sh(t, dir, installUnits)
	require.Equal(t, "active", systemctl(t, "gladsheimd.service", "ActiveState"))
	groupReaches(t)

	// A definition of the host comes with a reload.
	writeFile(t, "/etc/gladsheim/services.d/lasting.json", workload(t, "lasting", "unit-token", "sleep").json(t))
	sh(t, "/", "systemctl reload gladsheimd")
	eventually(t, "it is defined", func() bool { code, _ := tryAs(t, "/", nil, "gladsheim definition lasting"); return code == 0 })
	sh(t, "/", "gladsheim start lasting")
	service := marked(t, "unit-token")
	require.Len(t, service, 1)
	require.Regexp(t, "^/gladsheim.slice/", cgroupOf(service[0]))

	agentPID := func() string { return systemctl(t, "gladsheimd.service", "MainPID") }
	running := func() bool {
		code, _ := tryAs(t, "/", nil, "gladsheim status lasting")
		return code == 0
	}
	for _, c := range []struct{ name, script string }{
		{"it panics", "kill -QUIT " + agentPID()}, // Go's runtime ends as for a panic, with 2
		{"an upgrade", "cd " + dir + "\n" + upgrade},
		{"it is killed", "systemctl kill -s KILL --kill-who=main gladsheimd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := agentPID()
			sh(t, "/", c.script)
			eventually(t, "another agent runs", func() bool { return agentPID() != before && agentPID() != "0" && running() })
			require.Equal(t, service, marked(t, "unit-token"), "the same process")
			groupReaches(t)
		})
	}
	restartAmidStarts(t)
	sh(t, "/", "systemctl stop gladsheimd")
	require.Equal(t, service, marked(t, "unit-token"), "it goes on without an agent")
	require.Equal(t, "inactive", systemctl(t, "gladsheimd.service", "ActiveState"))
	code, out := tryAs(t, "/", nil, "gladsheim list")
	require.Equal(t, 7, code, out)
	sh(t, "/", "systemctl start gladsheimd")
	sh(t, "/", "gladsheim stop lasting")
	require.Empty(t, marked(t, "unit-token"))

	// What can not be mended by starting again is not started again.
	writeFile(t, "/etc/gladsheim/gladsheim.json", []byte(`{"gladsheim":{"colour":1}}`))
	code, _ = tryAs(t, "/", nil, "systemctl restart gladsheimd")
	require.NotZero(t, code)
	require.Equal(t, "failed", systemctl(t, "gladsheimd.service", "ActiveState"))
	require.Equal(t, "78", systemctl(t, "gladsheimd.service", "ExecMainStatus"))
	require.NoError(t, os.Remove("/etc/gladsheim/gladsheim.json"))
	sh(t, "/", "systemctl start gladsheimd")
}

// restartAmidStarts restarts the agent while it launches: systemd launches nothing
// from then on, and waits for the agent with whatever it is asked about scopes.
// Nobody has two copies after it, what was begun is begun again, and what was not
// is not. Nothing of what was given up waits for systemd.
func restartAmidStarts(t *testing.T) {
	t.Helper()
	const many = 20
	var names []string
	for i := range many {
		name := fmt.Sprintf("amid-%d", i)
		names = append(names, name)
		writeFile(t, filepath.Join("/etc/gladsheim/services.d", name+".json"), workload(t, name, name+"-token", "sleep").json(t))
	}
	sh(t, "/", "systemctl reload gladsheimd")
	eventually(t, "they are defined", func() bool { code, _ := tryAs(t, "/", nil, "gladsheim definition "+names[many-1]); return code == 0 })
	var callers sync.WaitGroup
	callers.Go(func() { _, _ = tryAs(t, "/", nil, "gladsheim start "+strings.Join(names, " ")) })
	eventually(t, "some run", func() bool { return len(marked(t, "amid-")) > 0 })
	running := marked(t, "amid-")
	sh(t, "/", "systemctl restart gladsheimd")
	callers.Wait()
	states := func() map[string]int {
		text := sh(t, "/", "gladsheim list -o json")
		var list gladsheimv1.ServiceList
		require.NoError(t, protojson.Unmarshal([]byte(text), &list))
		of := map[string]int{}
		for _, s := range list.Services {
			if strings.HasPrefix(s.ServiceName, "amid-") {
				of[s.State.String()]++
			}
		}
		return of
	}
	eventually(t, "what was begun runs", func() bool {
		of := states()
		return of["SERVICE_STATE_RUNNING"]+of["SERVICE_STATE_STOPPED"] == many
	})
	now := marked(t, "amid-")
	t.Logf("%d ran when the agent was restarted, %d do now", len(running), len(now))
	require.Len(t, now, states()["SERVICE_STATE_RUNNING"])
	require.Subset(t, now, running)
	for _, name := range names {
		require.LessOrEqual(t, len(marked(t, name+"-token")), 1, name)
	}
	require.NotContains(t, sh(t, "/", "journalctl -u gladsheimd --no-pager"), "cannot yet remove what systemd makes")
	_, _ = tryAs(t, "/", nil, "gladsheim stop "+strings.Join(names, " ")) // those that were not begun do not run
	require.Empty(t, marked(t, "amid-"))
	require.Len(t, ourUnits(t), 2, "scope and slice of the one that lasts")
}

// TestTheGroupWithoutSystemd: where no unit makes the directory, the agent does,
// and the group may pass, even if the directory is older than the group.
func TestTheGroupWithoutSystemd(t *testing.T) {
	if offers(t, "systemd") || !offers(t, "cgroup2") {
		t.Skip("this belongs on hosts of its own without systemd")
	}
	dir := tree(t)
	sh(t, dir, installPrograms+"mkdir -m 750 /run/gladsheim")
	group, daemon, _ := strings.Cut(strings.TrimSpace(installElsewhere), "\n")
	sh(t, "/", group)
	cmd := exec.Command(filepath.Join("/usr/bin", daemon))
	log := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait(), log)
		sh(t, "/", "groupdel gladsheim && rm -r /usr/bin/gladsheimd /usr/bin/gladsheim /etc/gladsheim /var/lib/gladsheim /run/gladsheim /var/log/gladsheim")
	})
	eventually(t, "it answers", func() bool { code, _ := tryAs(t, "/", nil, "gladsheim list"); return code == 0 })
	groupReaches(t)
}
