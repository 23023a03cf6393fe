// Floors runs every floor of the tests on every host that it belongs on, and
// closes with one line that counts them. A test that is skipped on one host
// because it belongs on another counts once, where it ran; one that ran nowhere
// is a skip, and a skip fails the run. Flags: see -h.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// minimumCoverage is the least share of statements, in percent, that the unit
// and the host floors together have to reach.
const minimumCoverage = 80.0

// work is where everything is built and collected.
const work = ".cover"

func main() {
	only := flag.String("only", "", "comma-separated floors to run: unit, power, or hosts such as systemd; default all")
	run := flag.String("run", "", "regular expression of the tests to run, as for go test")
	machines := flag.Int("machines", 2, "emulated machines at the same time, or one less beside the unit floor; the bare host is beside them")
	soak := flag.Bool("soak", false, "hosts only: every package on every host it can run on, and at length")
	timeout := flag.Duration("timeout", 45*time.Minute, "how long the tests of one package may take on one host")
	flag.Parse()
	if err := floors(strings.FieldsFunc(*only, func(r rune) bool { return r == ',' }), *run, *machines, *soak, *timeout); err != nil {
		fmt.Fprintln(os.Stderr, "floors:", err)
		os.Exit(1)
	}
}

func floors(only []string, run string, machines int, soak bool, timeout time.Duration) error {
	start := time.Now()
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if err := command("test/host/install").Run(); err != nil {
		return fmt.Errorf("cannot install what the hosts need: %w", err)
	}
	wanted := func(name string) bool { return len(only) == 0 || slices.Contains(only, name) }
	tally := newTally()
	if wanted("static") && !soak {
		static(tally)
	}
	emulated, bare, err := onHosts(tally, wanted, run, soak, timeout)
	if err != nil {
		return err
	}
	if wanted("unit") && !soak {
		emulated = append([]func(){func() { unit(tally, run) }}, emulated...)
	}
	var lanes sync.WaitGroup
	lanes.Go(func() { sideBySide(emulated, machines) })
	lanes.Go(func() { sideBySide(bare, 1) }) // which mostly waits
	lanes.Wait()
	whole := len(only) == 0 && run == "" && !soak
	covered, err := coverage(whole)
	tally.print(os.Stdout, whole)
	fmt.Printf("statements covered, unit and hosts together: %s; %s in all\n", covered, time.Since(start).Round(time.Second))
	passed, failed, skipped := tally.total()
	if !whole {
		skipped = 0 // of a part nobody can say what ran nowhere
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if passed+failed == 0 {
		return errors.New("nothing ran: -only names no floor there is, or -run no test")
	}
	if failed > 0 || skipped > 0 {
		return fmt.Errorf("%d failed, %d skipped", failed, skipped)
	}
	return err
}

// static are the checks that run no test of ours: each counts as one.
func static(t *tally) {
	for name, cmd := range map[string]*exec.Cmd{
		"gofmt": exec.Command("sh", "-c", `bad=$(gofmt -l $(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); echo "$bad"; test -z "$bad"`),
		"vet":   exec.Command("go", "vet", "./..."),
		"proto": exec.Command("tools/proto", "check"),
		"tidy":  exec.Command("go", "mod", "tidy", "-diff"),
	} {
		out, err := cmd.CombinedOutput()
		if err != nil {
			fmt.Printf("--- FAIL: static/%s: %v\n%s\n", name, err, out)
		}
		t.add("static", "static/"+name, outcome(err == nil))
	}
}

// unit runs what needs no host, with the race detector. Tests that belong on a
// host skip themselves here.
func unit(t *tally, run string) {
	t.read("unit", "./...", func(again []string) *exec.Cmd {
		args := []string{"test", "-json", "-vet=off", "-race", "-covermode=atomic", "-coverpkg=./...", "-timeout=20m"}
		if pattern := pattern(run, again); pattern != "" {
			args = append(args, "-run", pattern)
		}
		args = append(args, packages(again)...)
		return exec.Command("go", append(args, "-args", "-test.gocoverdir="+coverDir("unit"))...)
	})
}

// pattern is the regular expression of what to run: the tests to run again, else
// what was asked for.
func pattern(run string, again []string) string {
	if len(again) == 0 {
		return run
	}
	var names []string
	for _, name := range again {
		_, test, _ := strings.Cut(name, ".")
		parts := strings.Split(test, "/")
		for i, part := range parts {
			parts[i] = "^" + regexp.QuoteMeta(part) + "$"
		}
		names = append(names, strings.Join(parts, "/"))
	}
	return strings.Join(names, "|")
}

// packages are those of the tests to run again, else all.
func packages(again []string) []string {
	if len(again) == 0 {
		return []string{"./..."}
	}
	var pkgs []string
	for _, name := range again {
		pkg, _, _ := strings.Cut(name, ".")
		pkgs = append(pkgs, "./"+pkg)
	}
	slices.Sort(pkgs)
	return slices.Compact(pkgs)
}

// onHosts builds each test binary once; its parts run them on the hosts they
// belong on, apart those that need no machine to be emulated.
func onHosts(t *tally, wanted func(string) bool, run string, soak bool, timeout time.Duration) (emulated, bare []func(), err error) {
	var jobs []job
	for _, j := range hostFloors(soak) {
		if wanted(j.host) {
			jobs = append(jobs, j)
		}
	}
	if len(jobs) == 0 {
		return nil, nil, nil
	}
	if err := build(jobs); err != nil {
		return nil, nil, err
	}
	for _, j := range jobs {
		part := func() {
			t.read(j.label(), j.pkg, func(again []string) *exec.Cmd { return j.command(pattern(run, again), timeout) })
		}
		if j.host == "bare" {
			bare = append(bare, part)
		} else {
			emulated = append(emulated, part)
		}
	}
	return emulated, bare, nil
}

// sideBySide runs parts in their order, so many at a time.
func sideBySide(parts []func(), many int) {
	slots := make(chan struct{}, many)
	var wg sync.WaitGroup
	for _, part := range parts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			part()
		})
	}
	wg.Wait()
}

func coverDir(name string) string {
	dir, err := filepath.Abs(filepath.Join(work, "data", name))
	if err != nil {
		panic(err) // only without a working directory
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(err)
	}
	return dir
}

func command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}
