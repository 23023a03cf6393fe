package failpoint

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// childVariable makes the test binary hit a point that kills it.
const childVariable = "GLADSHEIM_TEST_FAILPOINT"

func TestMain(m *testing.M) {
	if text := os.Getenv(childVariable); text != "" {
		var s Set
		if err := s.Arm(text); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("before")
		fmt.Println("after:", s.Hit(S7Cloned))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func TestTermsFollowOneAnother(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "- - - - -",
		"S7.cloned=error(no luck)":            "e e e e e",
		"S7.cloned=1*error(no luck)":          "e - - - -",
		"S7.cloned=2*off->1*error(no luck)":   "- - e - -",
		"S7.cloned=1*error(no luck)->off":     "e - - - -",
		" T0.received=panic ; S7.cloned=off;": "- - - - -",
		"S7.cloned=1*off->error(no luck)":     "- e e e e",
	} {
		var s Set
		require.NoError(t, s.Arm(text), text)
		var got []string
		for range 5 {
			switch err := s.Hit(S7Cloned); {
			case err == nil:
				got = append(got, "-")
			default:
				require.EqualError(t, err, "failpoint S7.cloned: no luck")
				got = append(got, "e")
			}
		}
		require.Equal(t, want, strings.Join(got, " "), text)
		require.Equal(t, map[Point]int{S7Cloned: 5}, s.Hits(), text)
	}
}

func TestWhatCanNotBeArmedChangesNothing(t *testing.T) {
	var s Set
	require.NoError(t, s.Arm("S7.cloned=error(first)"))
	for text, says := range map[string]string{
		"S7.cloned":                     "POINT=ACTION",
		"S99.nowhere=kill":              "no such point",
		"S7.cloned=off;S7.cloned=kill":  "twice",
		"S7.cloned=die":                 "an action is",
		"S7.cloned=error":               "an action is",
		"S7.cloned=error(x":             "parenthesis",
		"S7.cloned=kill(9)":             "no kill",
		"S7.cloned=delay(long)":         "long",
		"S7.cloned=0*kill":              "number of hits",
		"S7.cloned=x*kill":              "number of hits",
		"S7.cloned=1*off->":             "an action is",
		"S7.cloned=1*off->S8.x=1*error": "number",
	} {
		require.ErrorContains(t, s.Arm(text), says, text)
		require.ErrorContains(t, s.Hit(S7Cloned), "first", text)
	}
}

func TestDelayAndPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Set
		require.NoError(t, s.Arm("S7.cloned=1*delay(5s)->panic"))
		began := time.Now()
		require.NoError(t, s.Hit(S7Cloned))
		require.Equal(t, 5*time.Second, time.Since(began))
		require.PanicsWithValue(t, "failpoint S7.cloned", func() { _ = s.Hit(S7Cloned) })
		require.NoError(t, s.Hit(S8IdentityFsynced))
	})
}

func TestKill(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"=S7.cloned=kill")
	out, err := cmd.Output()
	require.Error(t, err)
	require.Equal(t, syscall.SIGKILL, cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	require.Equal(t, "before\n", string(out))
}

func TestOrders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "failpoints.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close()) // as after a kill
	l, err := Listen(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	var s Set
	served := make(chan struct{})
	go func() { s.Serve(l); close(served) }()
	order := func(text string) string {
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintln(conn, text)
		require.NoError(t, err)
		line, err := bufio.NewReader(conn).ReadString('\n')
		require.NoError(t, err)
		return strings.TrimSuffix(line, "\n")
	}
	require.Equal(t, "ok", order("arm S7.cloned=error(x)"))
	require.Error(t, s.Hit(S7Cloned))
	require.NoError(t, s.Hit(""), "it is no point")
	require.Equal(t, "S7.cloned=1", order("hits"))
	require.Contains(t, order("arm nonsense"), "cannot read")
	require.Contains(t, order("dance"), "no such order")
	require.Equal(t, "ok", order("arm "))
	require.NoError(t, s.Hit(S7Cloned))
	require.NoError(t, l.Close())
	<-served
}
