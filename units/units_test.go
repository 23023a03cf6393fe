package units

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestNames(t *testing.T) {
	web := service.MustName("web-front")
	require.Equal(t, "gladsheim-web-front-00000011.scope", Scope(web, 17))
	require.Equal(t, "svc-web-front-00000011", Dir(web, 17))
	require.Equal(t, "svc-web-front-ffffffffffffffff", Dir(web, math.MaxUint64))
}

func TestForeignNames(t *testing.T) {
	for _, text := range []string{
		"", "-", "svc-", "svc--", "svc-web", "svc-web-", "svc-web-17", "svc-web-0000000g", "svc-web-0000001F",
		"svc-web-000000011", "svc-Web-00000011", "svc-web.x-00000011", "svc--00000011", "svc-web-00000011/", "pause",
		"svc-web--00000011", "svc-web-+0000011", "cgroup.procs",
	} {
		_, _, ok := ParseDir(text)
		require.False(t, ok, text)
	}
	for _, text := range []string{
		AnchorScope, Slice, "gladsheimd.service", "gladsheim-web-00000011.service", "gladsheim-web-00000011",
		"gladsheim-00000011.scope", "session-1.scope", ".scope", "gladsheim-.scope", "gladsheim-web-00000011.scope.scope",
	} {
		_, _, ok := ParseScope(text)
		require.False(t, ok, text)
	}
}

func TestNamesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := service.MustName(rapid.StringMatching(`[a-z][a-z0-9]{0,9}([-_][a-z0-9]{1,9}){0,4}`).Draw(t, "name"))
		incarnation := rapid.Uint64().Draw(t, "incarnation")
		n, i, ok := ParseScope(Scope(name, incarnation))
		if !ok || n != name || i != incarnation {
			t.Fatalf("scope %s read back as %s %d %v", Scope(name, incarnation), n, i, ok)
		}
		n, i, ok = ParseDir(Dir(name, incarnation))
		if !ok || n != name || i != incarnation {
			t.Fatalf("dir %s read back as %s %d %v", Dir(name, incarnation), n, i, ok)
		}
		if len(Scope(name, incarnation)) > 255 {
			t.Fatal("longer than a unit name may be")
		}
	})
}

func FuzzParseScope(f *testing.F) {
	f.Add("gladsheim-web-00000011.scope")
	f.Add("gladsheim-a-b_c-0123456789abcdef.scope")
	f.Fuzz(func(t *testing.T, unit string) {
		if name, incarnation, ok := ParseScope(unit); ok {
			require.Equal(t, unit, Scope(name, incarnation))
		}
	})
}

// What the agent's unit must say, each with what breaks without it.
func TestServiceUnit(t *testing.T) {
	for line, why := range map[string]string{
		"Type=notify":                        "nobody would know when it is ready",
		"KillMode=process":                   "services could die with the agent",
		"Delegate=no":                        "the services' cgroups are not below the agent",
		"Restart=on-failure":                 "a crash would leave the services unattended",
		"RestartPreventExitStatus=3 78":      "2 is that of a panic: the services would be unattended for good",
		"OOMScoreAdjust=-900":                "the agent could be the OOM killer's first choice",
		"TasksMax=infinity":                  "forks would fail under the agent's own limit",
		"LimitNOFILE=524288":                 "each service costs descriptors",
		"RuntimeDirectory=gladsheim":         "",
		"RuntimeDirectoryMode=0750":          "everybody could reach the socket",
		"RuntimeDirectoryPreserve=yes":       "the records of living services would go with the agent",
		"StateDirectory=gladsheim":           "",
		"LogsDirectory=gladsheim":            "",
		"ExecReload=/bin/kill -HUP $MAINPID": "",
	} {
		require.Contains(t, strings.Split(Service, "\n"), line, why)
	}
	for _, inherited := range []string{"NoNewPrivileges", "Protect", "SystemCall", "Private", "Capability", "Restrict"} {
		for line := range strings.Lines(Service) {
			if strings.HasPrefix(line, "RestartPrevent") {
				continue
			}
			require.False(t, strings.HasPrefix(line, inherited), "every service would inherit %s", line)
		}
	}
	require.Contains(t, SliceUnit, "[Unit]\n")
	require.Contains(t, Sysusers, "\ng gladsheim -\n")
}
