// The runtime is not to look at the limits of its cgroup: it would keep files
// of it open, which "birth" would report and "close-stdout" would get to reuse.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Workload is the torture program of the tests: one static binary that behaves
// badly in one chosen way per mode. README.md tells which row of the fault
// matrix each mode serves. A mode that lives on prints a line beginning with
// "ready" once everything it is going to be is in place.
package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// mode is one way to behave. It is given what follows its name on the command
// line; when it returns, the program exits 0.
type mode struct {
	usage string
	run   func(args []string) error
}

func modes() map[string]mode {
	return map[string]mode{
		"exit":         {"CODE [AFTER]: exit with CODE after the time AFTER", runExit},
		"signal":       {"SIG [core]: die by SIG, with a core dump if asked", runSignal},
		"sleep":        {"[AFTER]: do nothing, for ever or for the time AFTER", runSleep},
		"mark":         {"FILE MODE [ARG...]: create FILE, then behave as MODE", runMark},
		"ignore-term":  {"outlive SIGTERM, SIGINT, SIGHUP, and print each signal that arrives", runIgnoreTerm},
		"stop-self":    {"send itself SIGSTOP", runStopSelf},
		"hold":         {"PID: keep the process PID from ending, even by SIGKILL, until the end of this one", runHold},
		"hog-memory":   {"BYTES [STEP [CHILDREN]]: have CHILDREN that sleep, and touch BYTES of memory, STEP at a time", runHogMemory},
		"cache":        {"DIR|DISK SKIP BYTES [MEMORY]: fill the page cache with BYTES of the files below DIR, or of DISK, but for the first SKIP, and touch MEMORY bytes", runCache},
		"hog-noise":    {"BYTES: fill BYTES of memory so that it compresses to a half", runHogNoise},
		"hog-huge":     {"BYTES: map and touch BYTES in huge pages of 2 MiB, or as many as there are", runHogHuge},
		"sawtooth":     {"BYTES PERIOD: hold ever more memory, BYTES for the last third of PERIOD, let go of it, again and again", runSawtooth},
		"read-disk":    {"DEVICE BYTES: read BYTES of DEVICE past the page cache", runReadDisk},
		"pulse":        {"BUSY IDLE: be busy for a time, sleep for another, again and again", runPulse},
		"hog-cpu":      {"N: keep N cores busy", runHogCPU},
		"fork":         {"N: have N children that sleep", runFork},
		"fork-bomb":    {"plain|setsid|churn|vfork|exec MAX: fork without end, at most MAX births (0: no bound)", runForkBomb},
		"double-fork":  {"[stay]: leave a daemon behind, and exit 0 or stay", runDoubleFork},
		"tree":         {"DEPTH: grow a tree of double-forked sessions that ignore SIGTERM", runTree},
		"zombies":      {"N: have N dead children and reap none", runZombies},
		"orphans":      {"N: leave N dead grandchildren for init to reap", runOrphans},
		"escape":       {"CGROUP: move a child of it into the cgroup at the path CGROUP", runEscape},
		"trespass":     {"SOCKET PID CGROUP: try to get at the agent PID, its SOCKET, and a CGROUP that is not its own", runTrespass},
		"close-stdout": {"close stdout and stderr, and live on", runCloseStdout},
		"hand-stdout":  {"[AFTER]: exit 0 while a grandchild keeps stdout open", runHandStdout},
		"log":          {"LINES SIZE [RATE]: print numbered lines of SIZE bytes, RATE a second", runLog},
		"talk":         {"SIZE RATE: print numbered lines of SIZE bytes, RATE a second, and how many they were when SIGTERM arrives", runTalk},
		"long-line":    {"BYTES: print one line of odd bytes", runLongLine},
		"odd-name":     {"wear a name that breaks parsers, and a command line of 120 KiB", runOddName},
		"exec-self":    {"RATE: exec itself RATE times a second", runExecSelf},
		"birth":        {"print as JSON what it was born with", runBirth},
		"notify":       {"FIFO: say to NOTIFY_SOCKET what lines of FIFO tell it to (sd_notify(3))", runNotify},
		"http":         {"ADDR [FAIL_AFTER]: serve /health, 200 at first, 503 after the time FAIL_AFTER", runHTTP},
		"deaf":         {"NETWORK ADDR [AFTER]: listen at ADDR and accept nobody, or nobody any more after the time AFTER", runDeaf},
		"slow":         {"ADDR PERIOD: accept one connection in each PERIOD", runSlow},
		"broken-files": {"DIR: fill DIR with files that can not be executed, and hold one open for writing", runBrokenFiles},
	}
}

// token is the argument of -t. Every child of the program carries it in its
// command line too, so that a test finds them all whatever they have become.
var token string

func main() {
	args := os.Args[1:]
	if len(args) >= 2 && args[0] == "-t" {
		token, args = args[1], args[2:]
	}
	if len(args) == 0 {
		fail(usage())
	}
	m, ok := modes()[args[0]]
	if !ok {
		fail(fmt.Sprintf("%q is not a mode\n%s", args[0], usage()))
	}
	if err := m.run(args[1:]); err != nil {
		fail(args[0] + ": " + err.Error())
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, "workload: "+message)
	os.Exit(2)
}

func usage() string {
	var lines []string
	for name, m := range modes() {
		lines = append(lines, "  "+name+" "+m.usage)
	}
	slices.Sort(lines)
	return "workload [-t TOKEN] MODE [ARG...]\n" + strings.Join(lines, "\n")
}

// self is the command line that makes this program behave as the given mode.
func self(mode ...string) []string {
	if token == "" {
		return append([]string{os.Args[0]}, mode...)
	}
	return append([]string{os.Args[0], "-t", token}, mode...)
}

func ready(details ...any) {
	fmt.Println(append([]any{"ready"}, details...)...)
}

func forever() { time.Sleep(1 << 62) }

// number reads args[i] as a whole number.
func number(args []string, i int) (int, error) {
	if i >= len(args) {
		return 0, fmt.Errorf("argument %d, a number, is missing", i+1)
	}
	n, err := strconv.Atoi(args[i])
	if err != nil || n < 0 {
		return 0, fmt.Errorf("argument %d, %q, is not a whole number", i+1, args[i])
	}
	return n, nil
}

// duration reads args[i] as a time, 0 when it is missing.
func duration(args []string, i int) (time.Duration, error) {
	if i >= len(args) {
		return 0, nil
	}
	return time.ParseDuration(args[i])
}
