package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/gladsheim/gladsheim/"

// rooms says which of our packages each of our packages may import. It is the
// architecture; the drawing in docs/architecture.md is made from it. Imports
// point down only.
var rooms = map[string]string{
	"agent/service": "",
	"failpoint":     "",

	"procfs":             "agent/service",
	"cgroup":             "agent/service",
	"sockets":            "",
	"watch":              "",
	"units":              "agent/service",
	"platform":           "agent/service",
	"platform/power":     "agent/service",
	"platform/wallclock": "",
	"logfile":            "agent/service",
	"logfile/tail":       "logfile",
	"journal":            "agent/service",
	"notify":             "agent/service",
	"lockfile":           "procfs",

	"backends":                      "agent/service",
	"backends/internal/process":     "agent/service procfs watch",
	"backends/internal/rlimit":      "agent/service backends/internal/launch/gate",
	"backends/internal/place":       "agent/service backends backends/internal/launch backends/internal/launch/gate backends/internal/process watch cgroup procfs",
	"backends/internal/launch":      "agent/service backends journal procfs watch backends/internal/process backends/internal/launch/gate failpoint",
	"backends/internal/launch/gate": "",
	"backends/systemd":              "agent/service backends backends/internal/rlimit backends/internal/launch backends/internal/place backends/internal/process watch cgroup procfs units failpoint",
	"backends/cgroupfs":             "agent/service backends backends/internal/rlimit backends/internal/launch backends/internal/place backends/internal/process watch cgroup procfs units failpoint",
	"backends/exec":                 "agent/service backends backends/internal/rlimit backends/internal/launch backends/internal/process watch procfs failpoint",
	"backends/fake":                 "agent/service backends",
	"backends/offer":                "agent/service backends backends/systemd backends/cgroupfs backends/exec backends/internal/launch backends/internal/process watch cgroup lockfile platform procfs",
	"backends/backendtest":          "agent/service backends backends/internal/launch/gate",

	"agent/vigil":     "",
	"agent/thjalfi":   "agent/service agent/vigil backends failpoint",
	"agent/skirnir":   "agent/service",
	"agent/byggvir":   "agent/service backends sockets",
	"agent/roskva":    "agent/service agent/vigil watch",
	"agent/timetable": "agent/service",
	"agent/config":    "agent/service agent/timetable platform",
	"agent":           "agent/service agent/thjalfi agent/skirnir agent/byggvir agent/roskva agent/config agent/timetable backends journal lockfile logfile notify logfile/tail platform procfs sockets",

	"proto/gladsheim/v1": "",
	"api":                "agent/service journal logfile logfile/tail proto/gladsheim/v1 failpoint",
	"api/client":         "agent/service proto/gladsheim/v1",
	"api/apitest":        "agent/service logfile",

	// The one package under test/ that is shipped: fsck is the very auditor that the
	// tests trust. It shares no code with what it looks at but the messages.
	"test/auditor": "proto/gladsheim/v1",

	"cmd/gladsheim":  "api/client agent/service agent/config platform proto/gladsheim/v1 test/auditor",
	"cmd/gladsheimd": "agent agent/config agent/service api backends/offer journal logfile platform platform/power platform/wallclock procfs failpoint",
}

// lowest are the rooms that everything stands on.
var lowest = []string{"agent/service", "failpoint"}

// forbidden are imports from outside that only one place may have, each with
// its reason.
var forbidden = map[string]struct {
	allowed []string
	why     string
}{
	"os/exec": {
		[]string{"backends/internal/launch", "backends/backendtest", "journal"},
		"a process is born in one place, at the gate, or it inherits what it must not (backendtest builds the torture program; journal runs journalctl, which lives as long as somebody reads)",
	},
	"github.com/godbus/dbus/v5":                   {[]string{"backends/systemd", "platform/power"}, "D-Bus is spoken in one place, and UPower asked in another"},
	"github.com/coreos/go-systemd/v22/dbus":       {[]string{"backends/systemd"}, "D-Bus is spoken in one place"},
	"github.com/containerd/cgroups/v3/cgroup2":    {[]string{"cgroup"}, "cgroup files are read in one place"},
	"google.golang.org/grpc/credentials/insecure": {[]string{"api/client", "test/auditor"}, "plain text is for the unix socket"},
}

// badNames are package names that say nothing.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "types", "models", "manager", "misc", "shared", "lib"}

type pkg struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
}

// packages lists our packages, of those under test/ only what is shipped.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", module+"...")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var all []pkg
	for dec := json.NewDecoder(out); ; {
		var p pkg
		err := dec.Decode(&p)
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		if !strings.HasPrefix(p.ImportPath, "test/") || p.ImportPath == "test/auditor" {
			all = append(all, p)
		}
	}
	require.NoError(t, cmd.Wait())
	require.NotEmpty(t, all)
	return all
}

func TestImportsPointDown(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		seen[p.ImportPath] = true
		may, known := rooms[p.ImportPath]
		if !known {
			t.Errorf("%s is in no room: add it to rooms, and say what it may import", p.ImportPath)
		}
		for _, imp := range p.Imports {
			if dep, ours := strings.CutPrefix(imp, module); ours && !slices.Contains(strings.Fields(may), dep) {
				t.Errorf("%s may not import %s", p.ImportPath, dep)
			}
			if rule, ruled := forbidden[imp]; ruled && !slices.Contains(rule.allowed, p.ImportPath) {
				t.Errorf("%s may not import %s: %s", p.ImportPath, imp, rule.why)
			}
			if first, _, _ := strings.Cut(imp, "/"); slices.Contains(lowest, p.ImportPath) && strings.Contains(first, ".") {
				t.Errorf("%s imports %s; it is to need the standard library only", p.ImportPath, imp)
			}
		}
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("the room %s is empty: remove it from rooms", room)
		}
	}
}

func TestEveryPackageHasOneDocAndAName(t *testing.T) {
	for _, p := range packages(t) {
		base := filepath.Base(p.ImportPath)
		if slices.Contains(badNames, base) {
			t.Errorf("%s: the name says nothing", p.ImportPath)
		}
		if strings.HasPrefix(p.ImportPath, "proto/") {
			continue // generated
		}
		docs := 0
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
			require.NoError(t, err)
			if file.Doc != nil {
				docs++
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" && p.ImportPath != "backends/internal/launch/gate" {
					t.Errorf("%s/%s has an init function; only the gate may, which has to run before everything else", p.ImportPath, name)
				}
			}
		}
		if docs != 1 {
			t.Errorf("%s has %d package comments; it shall have one", p.ImportPath, docs)
		}
	}
}

// TestMainIsThin keeps the daemon's main what it is: flags to facts to agent.
func TestMainIsThin(t *testing.T) {
	main, err := os.ReadFile("../../cmd/gladsheimd/main.go")
	require.NoError(t, err)
	require.LessOrEqual(t, strings.Count(string(main), "\n"), 120)
}
