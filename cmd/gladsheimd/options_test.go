package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent"
	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/api"
	"github.com/gladsheim/gladsheim/backends/offer"
	"github.com/gladsheim/gladsheim/platform"
)

func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func TestFlagsWinOverTheEnvironment(t *testing.T) {
	o, err := parseOptions([]string{"--backend", "exec", "-listen", "unix:///a", "-listen", "unix:///b"}, environment(map[string]string{
		"GLADSHEIMD_BACKEND": "systemd", "GLADSHEIMD_RUN_DIR": "/somewhere", "GLADSHEIMD_LISTEN": "unix:///c",
	}))
	require.NoError(t, err)
	require.Equal(t, "exec", o.backend)
	require.Equal(t, "/somewhere", o.runDir)
	require.Equal(t, []string{"unix:///a", "unix:///b"}, o.listen)
}

func TestSeveralAddressesInTheEnvironment(t *testing.T) {
	o, err := parseOptions(nil, environment(map[string]string{"GLADSHEIMD_LISTEN": "unix:///a,tcp://127.0.0.1:50060"}))
	require.NoError(t, err)
	require.Equal(t, []string{"unix:///a", "tcp://127.0.0.1:50060"}, o.listen)
}

func TestDirectoriesBecomeAbsolute(t *testing.T) {
	o, err := parseOptions([]string{"-run-dir", "run", "-state-dir", "state", "-log-dir", "log", "-services-dir", "s"}, environment(nil))
	require.NoError(t, err)
	for _, dir := range []string{o.runDir, o.stateDir, o.logDir, o.servicesDir} {
		require.True(t, filepath.IsAbs(dir), dir)
	}
	require.Equal(t, []string{"unix://" + o.runDir + "/gladsheim.sock"}, o.addresses(config.Agent{}))
	require.Contains(t, o.addresses(config.Agent{GRPC: &config.GRPC{Host: "127.0.0.1", Port: 50060}}), "tcp://127.0.0.1:50060")
}

func TestBadUsage(t *testing.T) {
	for _, args := range [][]string{{"-colour"}, {"start"}, {"-backend", "docker"}} {
		_, err := parseOptions(args, environment(nil))
		require.Error(t, err, "%v", args)
	}
}

// An image may say by it which version it holds.
func TestVersionIsNoWishOfTheEnvironment(t *testing.T) {
	for _, value := range []string{"1", "1.4"} {
		o, err := parseOptions(nil, environment(map[string]string{"GLADSHEIMD_VERSION": value}))
		require.NoError(t, err)
		require.False(t, o.version)
	}
}

func TestSettings(t *testing.T) {
	profile, err := platform.Choose("asgard", platform.Facts{})
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "gladsheim.json")
	_, err = options{config: file}.settings(profile)
	require.ErrorContains(t, err, file, "a file that was named has to be there")
	require.NoError(t, os.WriteFile(file, []byte(`{"gladsheim":{"resource_limits":{"max_services":7}}}`), 0o600))
	s, err := options{config: file}.settings(profile)
	require.NoError(t, err)
	require.Equal(t, 7, s.MaxServices)
	require.NoError(t, os.WriteFile(file, []byte(`{"gladsheim":{"colour":1}}`), 0o600))
	_, err = options{config: file}.settings(profile)
	require.ErrorContains(t, err, "colour")
	require.NoError(t, os.Chmod(file, 0o664))
	_, err = options{config: file}.settings(profile)
	require.ErrorContains(t, err, file+": its mode is 0664, which lets others write it; run: chmod go-w")
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chmod(file, 0o600))
		require.NoError(t, os.Chown(file, 12345, 0))
		_, err = options{config: file}.settings(profile)
		require.ErrorContains(t, err, file+": it belongs to user 12345")
	}
}

func TestExitCodes(t *testing.T) {
	require.Equal(t, 3, exitCode(fmt.Errorf("x: %w", agent.ErrTaken)))
	require.Equal(t, 78, exitCode(unfit{errors.New("no cgroups")}))
	require.Equal(t, 1, exitCode(errors.New("x")))
	for _, address := range []string{"tcp://0.0.0.0:1", "unix://run/s", "unix:///" + strings.Repeat("x", 120)} {
		_, err := api.Listen(address)
		require.Equal(t, 78, exitCode(err), "%v", err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := api.Listen("unix://" + socket)
	require.NoError(t, err)
	defer l.Close()
	_, err = api.Listen("unix://" + socket)
	require.Equal(t, 3, exitCode(err), "%v", err)
	require.Equal(t, 78, exitCode(fmt.Errorf("cannot make it: %w", os.Mkdir(socket+"/state", 0o700))))
}

func TestStartIsTriedAgain(t *testing.T) {
	notYet := fmt.Errorf("open it: %w", offer.NotYet{Err: errors.New("PID 1 does not answer")})
	for _, tc := range []struct {
		err  error
		want int
	}{
		{unready(nil, errors.New("no such backend")), 78},
		{unready(errors.New("bad configuration"), nil), 78},
		{unready(nil, notYet), 1}, // the unit starts it again
		{unready(errors.New("bad configuration"), notYet), 78},
	} {
		require.Equal(t, tc.want, exitCode(tc.err), "%v", tc.err)
	}
}
