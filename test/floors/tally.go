package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// An outcome of one test on one floor.
const (
	pass = "pass"
	fail = "fail"
	skip = "skip"
)

func outcome(ok bool) string {
	if ok {
		return pass
	}
	return fail
}

// tally collects what became of every test on every floor.
type tally struct {
	mu     sync.Mutex
	floors []string
	tests  map[string]map[string]string // floor → test → outcome
	shaky  []string                     // what passed only when it was run again
	slow   []timed
}

// timed is a whole test of some floor, and how long it took.
type timed struct {
	floor, test string
	seconds     float64
}

func (t *tally) unsteady(floor, test string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shaky = append(t.shaky, floor+": "+test)
}

func newTally() *tally { return &tally{tests: map[string]map[string]string{}} }

func (t *tally) add(floor, test, outcome string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tests[floor] == nil {
		t.tests[floor] = map[string]string{}
		t.floors = append(t.floors, floor)
	}
	t.tests[floor][test] = outcome
}

// event is one line of `go test -json` (go doc cmd/test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds
}

// read runs a command that prints test events, and counts them. The output of a
// test is shown when it fails. A run that ends badly without a failed test is
// a failure of its own.
//
// Two things are done again, once, and never in silence. A machine that broke,
// which says nothing about the tests, is replaced. Tests that failed are run
// again by themselves, since an emulated machine on a busy one can be too slow
// for any patience; one that passes then is told as unsteady in the closing
// lines, where it has to be looked after. A race, a leak or a panic is no matter
// of patience, and final; a panic also hides the tests behind it.
func (t *tally) read(floor, what string, command func(again []string) *exec.Cmd) {
	start := time.Now()
	defer func() { fmt.Printf("%-14s %-20s took %s\n", floor, what, time.Since(start).Round(time.Second)) }()
	r := runTests(floor, command(nil))
	if r.broke() {
		fmt.Printf("the machine of %s broke, and is replaced:\n%s\n", floor, r.stderr)
		r = runTests(floor, command(nil))
	}
	r.show()
	if failed := r.failed(); len(failed) > 0 && !r.final() {
		second := runTests(floor, command(failed))
		second.show()
		for name, o := range second.outcomes {
			if r.outcomes[name] == fail && o == pass {
				t.unsteady(floor, name)
			}
			r.outcomes[name] = o
		}
		if second.err == nil { // the packages' own verdicts are void
			maps.DeleteFunc(r.outcomes, func(name, o string) bool { return o == fail && isPackage(name) })
		}
	}
	for test, outcome := range r.outcomes {
		t.add(floor, test, outcome)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.slow = append(t.slow, r.slow...)
}

// results is what one command said.
type results struct {
	floor    string
	cmd      *exec.Cmd
	outcomes map[string]string
	outputs  map[string]*strings.Builder // of tests that failed
	slow     []timed
	stderr   string
	err      error
}

// broken is the exit code of test/host/run for a host that could not be had.
const broken = 125

func (r *results) broke() bool {
	return r.cmd.ProcessState != nil && r.cmd.ProcessState.ExitCode() == broken
}

func runTests(floor string, cmd *exec.Cmd) *results {
	r := &results{floor: floor, cmd: cmd, outcomes: map[string]string{}, outputs: map[string]*strings.Builder{}}
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = nil, &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		r.count(out)
		err = cmd.Wait()
	}
	r.err, r.stderr = err, stderr.String()
	return r
}

func (r *results) count(out io.Reader) {
	texts := map[string]*strings.Builder{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // a compiler's complaint, say
			continue
		}
		name := e.Package
		if e.Test != "" {
			name += "." + e.Test
		}
		if e.Elapsed > 0 && e.Test != "" && !strings.Contains(e.Test, "/") {
			r.slow = append(r.slow, timed{r.floor, name, e.Elapsed})
		}
		switch e.Action {
		case "output", "build-output":
			if texts[name] == nil {
				texts[name] = &strings.Builder{}
			}
			texts[name].WriteString(e.Output)
		case pass, skip:
			if e.Test != "" {
				r.outcomes[name] = e.Action
			}
			delete(texts, name)
		case fail:
			r.outcomes[name], r.outputs[name] = fail, texts[name]
		}
	}
}

// failed lists the tests, or parts of them, to run again, as package.Test/part;
// none if the run ended badly for another reason.
func (r *results) failed() []string {
	var out []string
	for name := range r.outputs {
		pkg, test, _ := strings.Cut(strings.TrimPrefix(name, module+"/"), ".")
		part := func(other string) bool { return strings.HasPrefix(other, name+"/") }
		if test == "" || slices.ContainsFunc(slices.Collect(maps.Keys(r.outputs)), part) {
			continue // a package, or a test of which a part failed
		}
		out = append(out, pkg+"."+test)
	}
	slices.Sort(out)
	return out
}

// final tells that what failed is not to be tried again.
func (r *results) final() bool {
	for _, text := range r.outputs {
		for _, sign := range []string{"DATA RACE", "panic: ", "fatal error: ", "found unexpected goroutines"} {
			if text != nil && strings.Contains(text.String(), sign) {
				return true
			}
		}
	}
	return false
}

func isPackage(name string) bool {
	return !strings.Contains(strings.TrimPrefix(name, module+"/"), ".")
}

// show prints what failed, and makes a run that ended badly for no test's sake
// a failure.
func (r *results) show() {
	for name, text := range r.outputs {
		fmt.Printf("--- FAIL on %s: %s\n", r.floor, name)
		if text != nil {
			fmt.Println(text.String())
		}
	}
	if r.err != nil && len(r.outputs) == 0 {
		name := strings.Join(r.cmd.Args[max(0, len(r.cmd.Args)-2):], " ")
		fmt.Printf("--- FAIL: %s: %s: %v\n%s\n", r.floor, name, r.err, r.stderr)
		r.outcomes[name] = fail
	}
}

// nowhere lists the tests that were skipped wherever they were tried.
func (t *tally) nowhere() []string {
	ran := map[string]bool{}
	for _, tests := range t.tests {
		for name, o := range tests {
			if o != skip {
				ran[name] = true
			}
		}
	}
	var out []string
	for _, tests := range t.tests {
		for name, o := range tests {
			if o == skip && !ran[name] && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (t *tally) total() (passed, failed, skipped int) {
	for _, tests := range t.tests {
		for _, o := range tests {
			switch o {
			case pass:
				passed++
			case fail:
				failed++
			}
		}
	}
	return passed, failed, len(t.nowhere())
}

// print writes a line per floor, and the tests that ran nowhere.
func (t *tally) print(w io.Writer, whole bool) {
	fmt.Fprintln(w)
	for _, floor := range t.floors {
		counts := map[string]int{}
		for _, o := range t.tests[floor] {
			counts[o]++
		}
		fmt.Fprintf(w, "%-16s %5d passed %3d failed %4d of another host\n", floor, counts[pass], counts[fail], counts[skip])
	}
	slices.SortFunc(t.slow, func(a, b timed) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, s := range t.slow[:min(len(t.slow), 12)] {
		fmt.Fprintf(w, "slow: %3.0f s on %s: %s\n", s.seconds, s.floor, s.test)
	}
	slices.Sort(t.shaky)
	for _, name := range t.shaky {
		fmt.Fprintf(w, "unsteady, failed once and passed when run again: %s\n", name)
	}
	if !whole {
		return
	}
	for _, name := range t.nowhere() {
		fmt.Fprintf(w, "ran nowhere: %s\n", name)
	}
}
