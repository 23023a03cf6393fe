package launch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/watch"
)

// actorVariable makes the test binary play an agent that dies at the gate.
const actorVariable = "GLADSHEIM_TEST_ACTOR"

// act starts a gate, tells its number, and waits to be killed.
func act() {
	w, err := watch.New()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	c, err := Start(context.Background(), w, request("/bin/sleep", "1000"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(c.PID())
	time.Sleep(time.Hour)
}

func procPath(pid int) string { return "/proc/" + strconv.Itoa(pid) }

func processName(t testing.TB, pid int) string {
	t.Helper()
	name := ""
	// A gate names itself as the first thing it does.
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(filepath.Join(procPath(pid), "comm"))
		name = strings.TrimSpace(string(data))
		return err == nil && strings.HasPrefix(name, "gladsheim-")
	}, deadline, time.Millisecond)
	return name
}

// awaitDefaultSignals waits until a gate has reset its signals.
func awaitDefaultSignals(t testing.TB, pid int) {
	t.Helper()
	require.Eventually(t, func() bool { return statusOf(t, pid)["SigCgt"] == "0000000000000000" }, deadline, time.Millisecond)
}

// statusOf reads /proc/PID/status.
func statusOf(t testing.TB, pid int) map[string]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(procPath(pid), "status"))
	require.NoError(t, err)
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}
