package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// job is one test binary on one host.
type job struct {
	host string // as test/host/run knows it
	user bool   // bare only: as a plain user
	pkg  string // folder of the package
	env  []string
}

// machinesOf says on which machines a package's tests run, besides the unit floor.
var machinesOf = []struct {
	pkg   string
	hosts []string
}{
	{"platform", []string{"systemd", "systemd-old", "systemd-new", "cgroup2", "bare"}},
	{"cgroup", []string{"systemd", "systemd-old", "systemd-new", "cgroup2"}},
	{"backends/internal/process", []string{"systemd-old", "systemd-new"}},
	{"backends/internal/launch", []string{"systemd-old", "systemd-new"}},
	{"backends/exec", []string{"cgroup2", "bare"}},
	{"backends/cgroupfs", []string{"cgroup2", "systemd-old"}},
	{"backends/systemd", []string{"systemd", "systemd-old", "systemd-new"}},
	{"test/e2e", []string{"systemd", "systemd-old", "systemd-new", "cgroup2", "bare"}},
}

func hostFloors() []job {
	var jobs []job
	for _, m := range machinesOf {
		for _, host := range m.hosts {
			jobs = append(jobs, job{host: host, pkg: m.pkg})
			if host == "bare" {
				jobs = append(jobs, job{host: host, pkg: m.pkg, user: true})
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

// programs are what the tests on hosts start besides themselves. The first two
// tell what they covered.
var programs = []struct {
	name, pkg string
	cover     bool
}{
	{"gladsheimd", "./cmd/gladsheimd", true},
	{"gladsheim", "./cmd/gladsheim", true},
	{"workload", "./test/workload", false},
	{"wireclient", "./test/wireclient", false},
}

// build makes the programs and test binaries that the jobs need, static, so
// that they run on every host.
func build(jobs []job) error {
	env := append(os.Environ(), "CGO_ENABLED=0")
	cover := []string{"-cover", "-covermode=atomic", "-coverpkg=./..."}
	for _, p := range programs {
		args := []string{"build", "-buildvcs=false", "-o", filepath.Join(work, "bin", p.name)}
		if p.cover {
			args = append(args, cover...)
		}
		cmd := command("go", append(args, p.pkg)...)
		cmd.Env = env
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("cannot build %s: %w", p.name, err)
		}
	}
	built := map[string]bool{}
	for _, j := range jobs {
		if built[j.pkg] {
			continue
		}
		built[j.pkg] = true
		args := append([]string{"test", "-c", "-o", filepath.Join(work, "bin", j.binary())}, cover...)
		cmd := command("go", append(args, "./"+j.pkg)...)
		cmd.Env = env
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("cannot build the tests of %s: %w", j.pkg, err)
		}
	}
	return nil
}

// command runs the job's test binary on its host; its output is what
// `go test -json` would print.
func (j job) command(run string) *exec.Cmd {
	data := coverDir(strings.NewReplacer("/", "-", " ", "-").Replace(j.label() + "-" + j.pkg))
	args := []string{"-timeout", "20m", "-bin", filepath.Join(work, "bin"), "-out", "cover:" + data}
	if j.user {
		args = append(args, "-user")
	}
	test := "mkdir -p cover/daemon && GOCOVERDIR=$PWD/cover/daemon GLADSHEIM_WORKLOAD=$(command -v workload) " +
		j.binary() + " -test.v=test2json -test.timeout=18m -test.gocoverdir=$PWD/cover"
	if run != "" {
		test += " -test.run '" + strings.ReplaceAll(run, "'", `'\''`) + "'"
	}
	args = append([]string{"test/host/run", j.host}, args...)
	args = append(args, "--", "sh", "-c", test)
	script := fmt.Sprintf(`set -o pipefail; "$@" | go tool test2json -t -p %s/%s`, module, j.pkg)
	return exec.Command("bash", append([]string{"-c", script, "floors"}, args...)...)
}

const module = "github.com/gladsheim/gladsheim"
