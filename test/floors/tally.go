package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
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
}

// read runs cmd, which prints test events, and counts them. The output of a
// test is shown when it fails. A run that ends badly without a failed test is
// a failure of its own.
func (t *tally) read(floor string, cmd *exec.Cmd) {
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = nil, &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Printf("--- FAIL: %s: %v\n", floor, err)
		t.add(floor, strings.Join(cmd.Args, " "), fail)
		return
	}
	failed := t.count(floor, out)
	if err := cmd.Wait(); err != nil && !failed {
		fmt.Printf("--- FAIL: %s: %s: %v\n%s\n", floor, strings.Join(cmd.Args[max(0, len(cmd.Args)-3):], " "), err, stderr.String())
		t.add(floor, strings.Join(cmd.Args, " "), fail)
	}
}

func (t *tally) count(floor string, out io.Reader) (failed bool) {
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
		switch e.Action {
		case "output", "build-output":
			if texts[name] == nil {
				texts[name] = &strings.Builder{}
			}
			texts[name].WriteString(e.Output)
		case pass, skip:
			if e.Test != "" {
				t.add(floor, name, e.Action)
			}
			delete(texts, name)
		case fail:
			failed = true
			t.add(floor, name, fail)
			fmt.Printf("--- FAIL on %s: %s\n", floor, name)
			if b := texts[name]; b != nil {
				fmt.Println(b.String())
			}
		}
	}
	return failed
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
	if !whole {
		return
	}
	for _, name := range t.nowhere() {
		fmt.Fprintf(w, "ran nowhere: %s\n", name)
	}
}
