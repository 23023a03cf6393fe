package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// job is one test binary on one host.
type job struct {
	host string // as test/host/run knows it, or outside
	user bool   // bare only: as a plain user
	soak bool   // at length
	pkg  string // folder of the package
}

// outside is the floor of tests that run here and switch machines on and off
// themselves.
const outside = "power"

// machinesOf says on which machines a package's tests run, besides the unit
// floor, and with which programs. What takes longest comes first. In a soak they
// run on every machine that offers what they are about.
var machinesOf = []struct {
	pkg      string
	hosts    []string
	soak     []string
	programs []string
}{
	{"test/e2e", []string{"systemd-new", "systemd", "systemd-old", "cgroup2", "bare"}, nil, []string{"gladsheimd", "gladsheimd-failpoints", "gladsheim", "workload", "wireclient"}},
	{"test/power", []string{outside}, nil, []string{"gladsheimd", "gladsheim", "workload"}},
	{"backends/systemd", []string{"systemd", "systemd-old", "systemd-new"}, nil, []string{"workload"}},
	{"cmd/gladsheimd", []string{"systemd", "cgroup2", "bare"}, []string{"systemd-old", "systemd-new"}, []string{"workload"}},
	{"backends/cgroupfs", []string{"cgroup2", "systemd-old"}, []string{"systemd", "systemd-new"}, []string{"workload"}},
	{"backends/exec", []string{"cgroup2", "bare"}, []string{"systemd", "systemd-old", "systemd-new"}, []string{"workload"}},
	{"backends/internal/process", []string{"systemd-old", "systemd-new"}, []string{"systemd", "cgroup2"}, []string{"workload"}},
	{"backends/internal/launch", []string{"systemd-old"}, []string{"systemd", "systemd-new", "cgroup2"}, []string{"workload"}},
	{"journal", []string{"systemd", "systemd-old", "systemd-new"}, nil, nil},
	{"cgroup", []string{"systemd", "systemd-old", "systemd-new", "cgroup2"}, nil, nil},
	{"platform", []string{"systemd", "systemd-old", "systemd-new", "cgroup2", "bare"}, nil, nil},
}

// programs are what the tests execute. Those that die of their own failpoints
// could not tell what they covered.
var programs = []struct {
	name, pkg string
	cover     bool
	flags     []string
}{
	{"gladsheimd", "cmd/gladsheimd", true, nil},
	{"gladsheimd-failpoints", "cmd/gladsheimd", false, []string{"-tags=failpoints"}},
	{"gladsheim", "cmd/gladsheim", true, nil},
	{"workload", "test/workload", false, nil},
	{"wireclient", "test/wireclient", false, nil},
}

func hostFloors(soak bool) []job {
	var jobs []job
	for _, m := range machinesOf {
		hosts := m.hosts
		if soak {
			hosts = slices.Concat(m.hosts, m.soak)
		}
		for _, host := range hosts {
			jobs = append(jobs, job{host: host, pkg: m.pkg, soak: soak})
			if host == "bare" {
				jobs = append(jobs, job{host: host, pkg: m.pkg, soak: soak, user: true})
			}
		}
	}
	return jobs
}

func (j job) label() string {
	if j.user {
		return j.host + " (user)"
	}
	return j.host
}

func (j job) binary() string { return strings.ReplaceAll(j.pkg, "/", "-") + ".test" }

// bin is the folder of everything that the tests of a package execute. A machine
// is given no more than that: it has to read it all in.
func bin(pkg string) string { return filepath.Join(work, "bin", filepath.FromSlash(pkg)) }

// build makes the programs and test binaries that the jobs need, static, so
// that they run on every host. They tell what they covered, but for the tests'
// own programs.
func build(jobs []job) error {
	made := filepath.Join(work, "programs")
	for _, p := range programs {
		if err := compile(filepath.Join(made, p.name), p.pkg, p.cover, append([]string{"build"}, p.flags...)...); err != nil {
			return err
		}
	}
	for _, m := range machinesOf {
		if !slices.ContainsFunc(jobs, func(j job) bool { return j.pkg == m.pkg }) {
			continue
		}
		if err := compile(filepath.Join(bin(m.pkg), job{pkg: m.pkg}.binary()), m.pkg, true, "test", "-c"); err != nil {
			return err
		}
		for _, program := range m.programs {
			if err := os.Link(filepath.Join(made, program), filepath.Join(bin(m.pkg), program)); err != nil {
				return err
			}
		}
	}
	return nil
}

func compile(to, pkg string, cover bool, verb ...string) error {
	args := append(verb, "-ldflags=-s -w", "-o", to)
	if cover {
		args = append(args, "-cover", "-covermode=set", "-coverpkg=./...") // to count costs emulated hosts
	}
	cmd := command("go", append(args, "./"+pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot build %s: %w", pkg, err)
	}
	return nil
}

// command runs the job's test binary on its host; its output is what
// `go test -json` would print.
func (j job) command(run string, timeout time.Duration) *exec.Cmd {
	if j.host == outside {
		return j.here(run, timeout)
	}
	data := coverDir(strings.NewReplacer("/", "-", " ", "-").Replace(j.label() + "-" + j.pkg))
	args := []string{"-timeout", (timeout + time.Minute).String(), "-bin", bin(j.pkg), "-out", "cover:" + data}
	if j.soak {
		args = append(args, "-env", "GLADSHEIM_TEST_SOAK=1")
	}
	if kills := os.Getenv("GLADSHEIM_TEST_KILLS"); kills != "" { // of the agent, in test/e2e
		args = append(args, "-env", "GLADSHEIM_TEST_KILLS="+kills)
	}
	if j.user {
		args = append(args, "-user")
	}
	test := "mkdir -p cover/daemon && GOCOVERDIR=$PWD/cover/daemon GLADSHEIM_WORKLOAD=$(command -v workload) " +
		j.binary() + " -test.v=test2json -test.timeout=" + timeout.String() + " -test.gocoverdir=$PWD/cover"
	if run != "" {
		test += " -test.run '" + strings.ReplaceAll(run, "'", `'\''`) + "'"
	}
	args = append([]string{"test/host/run", j.host}, args...)
	return j.events(append(args, "--", "sh", "-c", test))
}

// here is command for a test binary that stays outside of the machines.
func (j job) here(run string, timeout time.Duration) *exec.Cmd {
	dir, err := filepath.Abs(bin(j.pkg))
	if err != nil {
		panic(err) // only without a working directory
	}
	args := []string{filepath.Join(dir, j.binary()), "-test.v=test2json", "-test.timeout=" + timeout.String()}
	if run != "" {
		args = append(args, "-test.run", run)
	}
	cmd := j.events(args)
	cmd.Dir, cmd.Env = j.pkg, append(os.Environ(), "GLADSHEIM_TEST_POWER="+dir)
	if j.soak {
		cmd.Env = append(cmd.Env, "GLADSHEIM_TEST_SOAK=1")
	}
	return cmd
}

// events runs a test binary by such a command, and turns what it prints into events.
func (j job) events(args []string) *exec.Cmd {
	script := fmt.Sprintf(`set -o pipefail; "$@" | go tool test2json -t -p %s/%s`, module, j.pkg)
	return exec.Command("bash", append([]string{"-c", script, "floors"}, args...)...)
}

const module = "github.com/gladsheim/gladsheim"
