package main

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// script is a command that prints test events, and exits with a code.
func script(code string, lines ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-c", `code=$1; shift; for l; do printf '%s\n' "$l"; done; exit $code`, "sh", code}, lines...)...)
}

const pkg = `"Package":"` + module + `/room"`

func TestCounting(t *testing.T) {
	y := newTally()
	y.read("unit", "room", func([]string) *exec.Cmd {
		return script("0", `{"Action":"pass",`+pkg+`,"Test":"TestA"}`, `{"Action":"skip",`+pkg+`,"Test":"TestB"}`, `{"Action":"pass",`+pkg+`}`)
	})
	passed, failed, skipped := y.total()
	require.Equal(t, []int{1, 0, 1}, []int{passed, failed, skipped})
	require.Equal(t, []string{module + "/room.TestB"}, y.nowhere())
	y.read("systemd", "room", func([]string) *exec.Cmd { return script("0", `{"Action":"pass",`+pkg+`,"Test":"TestB"}`) })
	_, _, skipped = y.total()
	require.Zero(t, skipped, "it ran on its own host")
}

func TestAFailureIsAFailureTwice(t *testing.T) {
	y := newTally()
	var asked [][]string
	y.read("unit", "room", func(again []string) *exec.Cmd {
		asked = append(asked, again)
		return script("1", `{"Action":"fail",`+pkg+`,"Test":"TestA/part"}`, `{"Action":"fail",`+pkg+`,"Test":"TestA"}`, `{"Action":"fail",`+pkg+`}`)
	})
	_, failed, _ := y.total()
	require.Equal(t, 3, failed)
	require.Equal(t, [][]string{nil, {"room.TestA/part"}}, asked)
	require.Empty(t, y.shaky)
}

func TestWhatPassesAgainIsToldAsUnsteady(t *testing.T) {
	y := newTally()
	y.read("unit", "room", func(again []string) *exec.Cmd {
		if again == nil {
			return script("1", `{"Action":"fail",`+pkg+`,"Test":"TestA"}`, `{"Action":"fail",`+pkg+`}`)
		}
		return script("0", `{"Action":"pass",`+pkg+`,"Test":"TestA"}`, `{"Action":"pass",`+pkg+`}`)
	})
	passed, failed, _ := y.total()
	require.Equal(t, []int{1, 0}, []int{passed, failed})
	require.Len(t, y.shaky, 1)
}

func TestABrokenMachineIsReplacedOnce(t *testing.T) {
	y := newTally()
	runs := 0
	y.read("systemd", "room", func([]string) *exec.Cmd { runs++; return script("125", `{"Action":"pass",`+pkg+`,"Test":"TestA"}`) })
	require.Equal(t, 2, runs)
	_, failed, _ := y.total()
	require.Equal(t, 1, failed, "a run that ended badly is no pass")
}

func TestAgain(t *testing.T) {
	again := []string{"agent/skirnir.TestA", "agent/skirnir.TestB/it's_(20_%)", "api.TestC"}
	require.Equal(t, `^TestA$|^TestB$/^it's_\(20_%\)$|^TestC$`, pattern("x", again))
	require.Equal(t, "x", pattern("x", nil))
	require.Equal(t, []string{"./agent/skirnir", "./api"}, packages(again))
}

func TestARaceIsFinal(t *testing.T) {
	y := newTally()
	runs := 0
	y.read("unit", "room", func([]string) *exec.Cmd {
		runs++
		return script("1", `{"Action":"output",`+pkg+`,"Test":"TestA","Output":"WARNING: DATA RACE\n"}`, `{"Action":"fail",`+pkg+`,"Test":"TestA"}`)
	})
	require.Equal(t, 1, runs)
	_, failed, _ := y.total()
	require.Equal(t, 1, failed)
}
