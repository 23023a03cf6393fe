package auditor

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const boot = "0ddc0ffe-e000-4000-8000-000000000001"

// stage is a host made of files, and an agent that says what it is told to.
type stage struct {
	gladsheimv1.UnimplementedGladsheimServiceServer
	t      *testing.T
	host   Host
	answer gladsheimv1.ServiceList
	asked  func() // nil: nothing happens
}

// web is the service of most stages: incarnation 3 runs as process 100 in a
// cgroup, with a child 101.
const (
	webGroup = "/gladsheim.slice/gladsheim-cgroups.scope/svc-web-00000003"
	webStart = 5000
)

// newStage is a host with which all is well: web runs, and so do the process that
// keeps our scope, a bystander 200, and the agent, which is this very process.
func newStage(t *testing.T) *stage {
	t.Helper()
	dir := t.TempDir()
	s := &stage{t: t, host: Host{
		State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run"), Socket: filepath.Join(dir, "s"),
		Cgroups: filepath.Join(dir, "cgroup"), AgentLog: filepath.Join(dir, "log"), Proc: filepath.Join(dir, "proc"),
	}}
	for _, d := range []string{s.host.State + "/services", s.host.State + "/exits", s.host.Run + "/services", s.host.Cgroups} {
		require.NoError(t, os.MkdirAll(d, 0o700))
	}
	s.file(s.host.Proc+"/sys/kernel/random/boot_id", boot+"\n")
	s.process(1, 0, 1, "/init.scope", 0)
	s.process(os.Getpid(), 1, 2, "/system.slice/gladsheimd.service", 0)
	s.process(90, 1, 90, notServices[0], 0)
	s.process(100, os.Getpid(), webStart, webGroup, 0)
	s.process(101, 100, 5001, webGroup, 0)
	s.process(200, 1, 7000, "/user.slice", 0)
	s.group(webGroup)
	s.record(s.host.State+"/services/web", map[string]any{"name": "web", "document": []byte("{web}"), "up": true})
	s.web(4, 3, 100)
	s.ends(1, 2)
	s.answers("web", 3, gladsheimv1.ServiceState_SERVICE_STATE_RUNNING)
	s.logged("listening", "")
	s.logged("call begun", started)
	s.logged("call", started+" outcome=OK took=1ms")

	l, err := net.Listen("unix", s.host.Socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	gladsheimv1.RegisterGladsheimServiceServer(server, s)
	served := make(chan struct{})
	go func() { _ = server.Serve(l); close(served) }()
	t.Cleanup(func() { server.Stop(); <-served })
	return s
}

const started = `method=/gladsheim.v1.GladsheimService/StartService actor="uid 0 (root)" pid=42 service=web`

const register = `method=/gladsheim.v1.CatalogService/Register actor="uid 0 (root)" pid=42`

func (s *stage) ListServices(context.Context, *gladsheimv1.ListServicesRequest) (*gladsheimv1.ServiceList, error) {
	if s.asked != nil {
		s.asked()
	}
	return &s.answer, nil
}

func (s *stage) file(path, text string) {
	require.NoError(s.t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(s.t, os.WriteFile(path, []byte(text), 0o600))
}

func (s *stage) proc(pid int, file string) string {
	return filepath.Join(s.host.Proc, strconv.Itoa(pid), file)
}

// process makes a process that has nothing but its three descriptors.
func (s *stage) process(pid, parent int, start uint64, cgroup string, brand uint64) {
	s.t.Helper()
	fields := append([]string{"S", strconv.Itoa(parent)}, strings.Fields(strings.Repeat("0 ", 17))...)
	s.file(s.proc(pid, "stat"), fmt.Sprintf("%d (x) R 1 (y)) %s %d 0\n", pid, strings.Join(fields, " "), start))
	s.file(s.proc(pid, "cgroup"), "1:name=x:/elsewhere\n0::"+cgroup+"\n")
	limit := "unlimited            unlimited            "
	if brand != 0 {
		limit = fmt.Sprintf("%-20d %-20d ", brand, brand)
	}
	s.file(s.proc(pid, "limits"), "Limit                     Soft Limit           Hard Limit           Units     \nMax realtime timeout      "+limit+"us        \n")
	s.file(s.proc(pid, "environ"), "PATH=/bin\x00")
	s.file(s.proc(pid, "oom_score_adj"), "0\n")
	s.file(s.proc(pid, "status"), "Name:\tx\nVmRSS:\t   20480 kB\nThreads:\t8\n")
	require.NoError(s.t, os.MkdirAll(s.proc(pid, "fd"), 0o700))
	for fd, target := range []string{"/dev/null", fmt.Sprintf("/log/%d", pid), fmt.Sprintf("/log/%d", pid)} {
		s.opens(pid, fd, target)
	}
}

func (s *stage) opens(pid, fd int, target string) {
	link := filepath.Join(s.proc(pid, "fd"), strconv.Itoa(fd))
	_ = os.Remove(link)
	require.NoError(s.t, os.Symlink(target, link))
}

func (s *stage) group(path string) { require.NoError(s.t, os.MkdirAll(s.host.Cgroups+path, 0o700)) }

// record writes a record as the agent does.
func (s *stage) record(path string, body any) {
	raw, err := json.Marshal(body)
	require.NoError(s.t, err)
	sum := crc32.Checksum(append([]byte("1"), raw...), crc32.MakeTable(crc32.Castagnoli))
	s.file(path+".json", fmt.Sprintf(`{"format":1,"crc32c":%d,"body":%s}`+"\n", sum, raw))
}

// web records what is of web: the state of its machine, its incarnation and its
// main process.
func (s *stage) web(state int, incarnation uint64, pid int) {
	s.webRestarted(state, incarnation, pid, 0)
}

func (s *stage) webRestarted(state int, incarnation uint64, pid int, restarts uint32) {
	s.record(s.host.Run+"/services/web", map[string]any{
		"name":    "web",
		"machine": map[string]any{"State": state, "Incarnation": incarnation, "Restarts": restarts},
		"ref":     map[string]any{"backend": "cgroupfs", "cgroup": webGroup, "pid": pid, "start_ticks": webStart},
		"spec":    map[string]any{"Environment": map[string]string{"TZ": "UTC"}},
		"boot_id": boot,
	})
}

type end map[string]any

// ends are how incarnations of web ended: a number is a crash of that one.
func (s *stage) ends(all ...any) {
	var records []end
	for _, x := range all {
		if n, ok := x.(int); ok {
			x = end{"Incarnation": n, "Exit": map[string]any{"Code": 1}, "Verdict": 3}
		}
		records = append(records, x.(end))
	}
	s.record(s.host.State+"/exits/web", records)
}

// answers sets what the agent says.
func (s *stage) answers(name string, incarnation uint64, state gladsheimv1.ServiceState) {
	phase := strings.ToLower(strings.TrimPrefix(state.String(), "SERVICE_STATE_"))
	s.answer.Services = []*gladsheimv1.ServiceStatus{{ServiceName: name, Incarnation: incarnation, State: state, Phase: phase}}
}

func (s *stage) logged(message, rest string) {
	f, err := os.OpenFile(s.host.AgentLog, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(s.t, err)
	defer f.Close()
	_, err = fmt.Fprintf(f, "time=2026-11-28T15:00:00.000Z level=INFO msg=%q %s\n", message, rest)
	require.NoError(s.t, err)
}

func (s *stage) audit(e Expectation) Report {
	s.t.Helper()
	r, err := Audit(s.t.Context(), s.host, e, 0)
	require.NoError(s.t, err)
	return r
}

// whole is what is true of a new stage.
func (s *stage) whole() Expectation {
	s.t.Helper()
	b, err := Take(s.t.Context(), s.host)
	require.NoError(s.t, err)
	require.Equal(s.t, []Instance{{"web", 100, webStart, webGroup}}, b.Instances)
	stander, err := Bystander(s.host, 200)
	require.NoError(s.t, err)
	return Expectation{Since: b, Bystanders: []Instance{stander}, Bare: []string{"web"}, Quiet: true}
}

var (
	acked        = Ack{Service: "web", Deed: Started, Incarnation: 3}
	acknowledged = []Ack{acked}
)

func TestAWholeHostHasNoFindings(t *testing.T) {
	s := newStage(t)
	e := s.whole()
	e.Acked = acknowledged
	require.Equal(t, Report{}, s.audit(e))
	require.Equal(t, Report{}, s.audit(Expectation{}))
}

// TestPlantedViolations: each check finds what it is there for.
func TestPlantedViolations(t *testing.T) {
	const (
		running = gladsheimv1.ServiceState_SERVICE_STATE_RUNNING
		ended   = gladsheimv1.ServiceState_SERVICE_STATE_STOPPED
	)
	stop := Ack{Service: "web", Deed: Stopped, Incarnation: 3}
	stopping := strings.ReplaceAll(started, "StartService", "StopService")
	stoppedWell := func(s *stage) { // all of a stop, but for what a row plants
		for _, pid := range []string{"100", "101"} {
			require.NoError(s.t, os.RemoveAll(filepath.Join(s.host.Proc, pid)))
		}
		require.NoError(s.t, os.RemoveAll(s.host.Cgroups+webGroup))
		s.record(s.host.State+"/services/web", map[string]any{"document": []byte("{web}")})
		s.web(0, 3, 0)
		s.ends(1, 2, 3)
		s.answers("web", 3, ended)
		s.logged("call begun", stopping)
		s.logged("call", stopping+" outcome=OK")
	}
	for name, row := range map[string]struct {
		plant func(*stage, *Expectation)
		want  []string // invariant, and a part of the text
	}{
		"the main process ended":          {func(s *stage, _ *Expectation) { require.NoError(t, os.RemoveAll(s.host.Proc+"/100")) }, []string{"I1 web: it ran as process 100", "I6 web: its record says that it runs as process 100, which is no more"}},
		"the main process is a successor": {func(s *stage, _ *Expectation) { s.process(100, 1, 6000, webGroup, 0) }, []string{"I1 web: it ran as process 100", "I6 web: its record says that it runs as process 100, which is no more"}},
		"the main process is a corpse": {func(s *stage, _ *Expectation) {
			s.file(s.proc(100, "stat"), strings.Replace(read(t, s.proc(100, "stat")), ") S ", ") Z ", 1))
		}, []string{"I1 web: it ran as process 100", "I6 web: its record says that it runs as process 100, which is no more"}},
		"a second copy": {func(s *stage, _ *Expectation) {
			s.process(110, 1, 8000, "/gladsheim.slice/gladsheim-web\\x2d00000004.slice/gladsheim-web-00000004.scope", 0)
		}, []string{"I2 web: it lives 2 times", "I3 web: process 110 lives in /gladsheim.slice/gladsheim-web\\x2d00000004.slice/gladsheim-web-00000004.scope, but incarnation 3 is on record, not 4"}},
		"a second copy by brand": {func(s *stage, _ *Expectation) { s.process(110, 1, 8000, "/user.slice", s.brand("web", 4)) },
			[]string{"I2 web: it lives 2 times", "I3 web: process 110 lives in brand"}},
		"a process of nobody in our slice": {func(s *stage, _ *Expectation) { s.process(110, 1, 8000, "/gladsheim.slice/odd", 0) }, []string{"I3 process 110 lives in /gladsheim.slice/odd, which is of no service"}},
		"a service that is not known": {func(s *stage, _ *Expectation) {
			s.process(110, 1, 8000, "/gladsheim/svc-ghost-00000001/below", 0)
		}, []string{"I3 ghost: process 110 lives in /gladsheim/svc-ghost-00000001, but no record is there of it"}},
		"an empty cgroup that is left": {func(s *stage, _ *Expectation) { s.group("/gladsheim/svc-web-00000002") }, []string{"I3 web: the cgroup /gladsheim/svc-web-00000002 is there, but incarnation 3 is on record"}},
		"the agent does not know it": {func(s *stage, _ *Expectation) { s.answer.Services = nil },
			[]string{"I3 web: process 100 lives", "but the agent does not know it", "I3 web: the cgroup"}},
		"the agent takes it for another": {func(s *stage, _ *Expectation) { s.answers("web", 4, running) }, []string{"the agent says that incarnation 4 is the present one"}},
		"the agent takes it for stopped": {func(s *stage, _ *Expectation) { s.answers("web", 3, ended) }, []string{"but the agent says that it does not run"}},
		"its record says that it ended":  {func(s *stage, _ *Expectation) { s.web(8, 3, 100); s.ends(1, 2, 3) }, []string{"I3 web: process 100 lives in " + webGroup + ", but its record says"}},
		"a start that is not kept": {func(s *stage, e *Expectation) {
			e.Acked = acknowledged
			s.record(s.host.State+"/services/web", map[string]any{"document": []byte("{web}")})
		}, []string{"I4 web: the start was acknowledged, and the disk says up: false"}},
		"a start that the agent forgot": {func(s *stage, e *Expectation) {
			e.Acked = []Ack{{Service: "web", Deed: Started, Incarnation: 4}}
		}, []string{"I4 web: the start of incarnation 4 was acknowledged"}},
		"a registration that is not kept": {func(s *stage, e *Expectation) {
			e.Acked = []Ack{{Service: "web", Deed: Registered, Document: []byte("{other}")}}
		}, []string{"I4 web: its registration was acknowledged, and the definition on disk is another", "I7 web"}},
		"an unregistration that is not kept": {func(s *stage, e *Expectation) { e.Acked = []Ack{{Service: "web", Deed: Unregistered}} },
			[]string{"I4 web: that it was unregistered was acknowledged", "I4 web: the unregister was acknowledged, and the agent says otherwise"}},
		"a record with a flipped bit": {func(s *stage, _ *Expectation) {
			path := s.host.State + "/services/web.json"
			s.file(path, strings.Replace(read(t, path), `"up":true`, `"up":fals`, 1))
		}, []string{"I4 web: " /* which can not be read */}},
		"a record of another checksum": {func(s *stage, _ *Expectation) {
			path := s.host.State + "/services/web.json"
			s.file(path, strings.Replace(read(t, path), `"up":true`, `"up":null`, 1))
		}, []string{"its checksum is"}},
		"a record of another format": {func(s *stage, _ *Expectation) {
			path := s.host.State + "/services/web.json"
			s.file(path, strings.Replace(read(t, path), `"format":1`, `"format":2`, 1))
		}, []string{"its format is 2"}},
		"a record that was set aside": {func(s *stage, _ *Expectation) { s.file(s.host.Run+"/services/web.json.corrupt-1", "x") }, []string{"I4 ", "damaged and set aside"}},
		"exit records that were set aside": {func(s *stage, _ *Expectation) {
			s.ends()
			s.file(s.host.State+"/exits/web.json.corrupt-1", "x")
		}, []string{"I4 web: "}},
		"a stop that was undone": {func(s *stage, e *Expectation) {
			stoppedWell(s)
			e.Acked = []Ack{stop}
			s.process(120, 1, 9000, "/gladsheim.slice/gladsheim-cgroups.scope/svc-web-00000004", 0)
			s.group("/gladsheim.slice/gladsheim-cgroups.scope/svc-web-00000004")
			s.web(4, 4, 120)
			s.answers("web", 4, running)
		}, []string{"I5 web: its stop was acknowledged, but process 120 of it lives", "I5 web: its stop was acknowledged, but its record says state 4 of incarnation 4", "the agent says that it is running"}},
		"a restart that is pending after a stop": {func(s *stage, e *Expectation) { stoppedWell(s); e.Acked = []Ack{stop}; s.web(7, 3, 0) }, []string{"I5 web: its stop was acknowledged, but its record says state 7"}},
		"an end without a record":                {func(s *stage, _ *Expectation) { s.ends(1) }, []string{"I6 web: incarnation 2 has ended, and the last record is of 1"}},
		"the end of one that lives":              {func(s *stage, _ *Expectation) { s.ends(1, 2, 3) }, []string{"I6 web: incarnation 2 has ended, and the last record is of 3"}},
		"an end between two":                     {func(s *stage, _ *Expectation) { s.ends(0, 2) }, []string{"I6 web: no record is there of how the incarnations between 0 and 2 ended"}},
		"two records of one end":                 {func(s *stage, _ *Expectation) { s.ends(1, 2, 2) }, []string{"I6 web: incarnation 2 ended twice"}},
		"an end that can not be": {func(s *stage, _ *Expectation) {
			s.ends(1, end{"Incarnation": 2, "Exit": map[string]any{"Code": 1, "Signal": 9}, "Verdict": 3})
		}, []string{"I6 web: the end of incarnation 2 can not be"}},
		"an unknown end with a code": {func(s *stage, _ *Expectation) {
			s.ends(1, end{"Incarnation": 2, "Exit": map[string]any{"Code": 137, "Unknown": "x"}, "Verdict": 11})
		}, []string{"I6 web: the end of incarnation 2 can not be"}},
		"an end without a verdict":       {func(s *stage, _ *Expectation) { s.ends(1, end{"Incarnation": 2, "Exit": map[string]any{"Code": 1}}) }, []string{"I6 web: the end of incarnation 2 was not judged"}},
		"an outcome before nobody asked": {func(s *stage, _ *Expectation) { s.logged("call", started+" outcome=NotFound") }, []string{"I7 web: the log tells an outcome of /gladsheim.v1.GladsheimService/StartService"}},
		"no outcome":                     {func(s *stage, _ *Expectation) { s.logged("call begun", started) }, []string{"I7 web: the log tells that uid 0 (root) asked for"}},
		"nobody is named": {func(s *stage, _ *Expectation) {
			s.logged("call begun", "method=/gladsheim.v1.RuntimeService/Kill service=web")
		}, []string{`I7 web: the log does not say who asked for "call begun"`}},
		"an acknowledged start that is not logged": {func(s *stage, e *Expectation) { e.Acked = []Ack{acked, acked} }, []string{"I7 web: the start was acknowledged, and the log does not tell of it"}},
		"a bystander was killed":                   {func(s *stage, _ *Expectation) { require.NoError(t, os.RemoveAll(s.host.Proc+"/200")) }, []string{"I8 process 200, which is none of ours, does not live any more"}},
		"a bystander was moved":                    {func(s *stage, _ *Expectation) { s.process(200, 1, 7000, "/gladsheim.slice", 0) }, []string{"I3 process 200", "I8 process 200, which is none of ours, was moved from /user.slice to /gladsheim.slice"}},
		"a cgroup of ours elsewhere":               {func(s *stage, _ *Expectation) { s.group("/system.slice/svc-web-00000003") }, []string{"I8 web: the cgroup /system.slice/svc-web-00000003 is not below one of ours"}},
		"a child that left":                        {func(s *stage, _ *Expectation) { s.process(101, 100, 5001, "/user.slice", 0) }, []string{"I8 web: its process 101 lives in /user.slice"}},
		"a main process that was moved":            {func(s *stage, _ *Expectation) { s.process(100, 1, webStart, "/user.slice", 0) }, []string{"I8 web: its process 100 lives in /user.slice"}},
		"too many open files": {func(s *stage, _ *Expectation) {
			for fd := range maxFiles + maxFilesPerService + 1 {
				s.opens(os.Getpid(), fd, "/dev/null")
			}
		}, []string{"I10 the agent has 529 open files, and 528 are its cap"}},
		"too much memory":  {func(s *stage, _ *Expectation) { s.file(s.proc(os.Getpid(), "status"), "VmRSS:\t 131073 kB\n") }, []string{"I10 the agent has 134218752 bytes of memory"}},
		"too many threads": {func(s *stage, _ *Expectation) { s.file(s.proc(os.Getpid(), "status"), "Threads:\t513\n") }, []string{"I10 the agent has 513 threads"}},
		"a restart without a failure": {func(s *stage, e *Expectation) {
			e.Since = Baseline{}
			s.webRestarted(4, 3, 100, 2)
			s.ends(1, end{"Incarnation": 2, "Exit": map[string]any{"Signal": 15}, "Verdict": 2})
		}, []string{"I11 web: it was restarted 2 times, and 1 failures are on record"}},
		"a restart since, without a failure since": {func(s *stage, e *Expectation) {
			e.Since.Restarts = map[string]Restarts{"web": {Count: 1, Incarnation: 3}}
			s.webRestarted(4, 3, 100, 2)
		}, []string{"I11 web: it was restarted 1 times, and 0 failures are on record"}},
		"a descriptor too many": {func(s *stage, _ *Expectation) { s.opens(100, 3, "/etc/passwd") }, []string{"I12 web: descriptor 3 is open: /etc/passwd"}},
		"a record that is open": {func(s *stage, e *Expectation) { e.Bare = nil; s.opens(100, 7, s.host.State+"/services/web.json") }, []string{"I12 web: descriptor 7 is a file of the agent's"}},
		"a socket of the agent's": {func(s *stage, e *Expectation) {
			e.Bare = nil
			s.opens(100, 7, "socket:[77]")
			s.opens(os.Getpid(), 9, "socket:[77]")
		}, []string{"I12 web: descriptor 7 is the agent's as well: socket:[77]"}},
		"a variable of the agent's":   {func(s *stage, e *Expectation) { e.Bare = nil; s.env(100, "SECRET=1"); s.env(os.Getpid(), "SECRET=1") }, []string{"I12 web: the variable SECRET is not its definition's"}},
		"a variable of nobody's":      {func(s *stage, _ *Expectation) { s.env(100, "TZ=UTC\x00X=1") }, []string{"I12 web: the variable X is not its definition's"}},
		"a variable that was changed": {func(s *stage, _ *Expectation) { s.env(100, "TZ=CET") }, []string{"I12 web: the variable TZ is not its definition's"}},
		"the agent's protection": {func(s *stage, e *Expectation) {
			e.Bare = nil
			s.file(s.proc(100, "oom_score_adj"), "-900\n")
			s.file(s.proc(os.Getpid(), "oom_score_adj"), "-900\n")
		}, []string{"I12 web: its oom_score_adj is -900, and its definition says 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			e := s.whole()
			row.plant(s, &e)
			r := s.audit(e)
			var all []string
			for _, f := range r.Findings {
				all = append(all, f.String())
			}
			require.NotEmpty(t, all)
			for _, want := range row.want {
				require.Contains(t, strings.Join(all, "\n"), want)
			}
			invariants := map[string]bool{}
			for _, f := range r.Findings {
				invariants[f.Invariant] = true
			}
			require.LessOrEqual(t, len(invariants), len(row.want), "it finds more than was planted: %q", all)
		})
	}
	t.Run("a stop as it should be", func(t *testing.T) {
		s := newStage(t)
		e := s.whole()
		stoppedWell(s)
		e.Acked = []Ack{acked, stop}
		require.Equal(t, Report{}, s.audit(e))
	})
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func (s *stage) env(pid int, text string) {
	s.file(s.proc(pid, "environ"), "PATH=/bin\x00"+text+"\x00")
}

// brand is what the exec backend gives the processes of an incarnation.
func (s *stage) brand(name string, incarnation uint64) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s\x00%s", os.Geteuid(), s.host.State, name))
	return 1<<62 | uint64(binary.BigEndian.Uint32(sum[:])>>2)<<32 | incarnation
}

// TestAnEndedAgentExcusesMissingOutcomes, and what is in another boot's records is
// nothing.
func TestAnEndedAgentExcusesMissingOutcomes(t *testing.T) {
	s := newStage(t)
	s.logged("call begun", started)
	s.logged("listening", "address=unix:///run/s")
	s.logged("call begun", started)
	s.logged("a handler panicked", "method=/gladsheim.v1.GladsheimService/StartService")
	s.logged("listening", "address=tcp://127.0.0.1:1")
	s.logged("call", started+" outcome=OK")
	s.logged("call begun", register)
	s.logged("call", register+" outcome=OK service=web")
	s.logged("call", "method=/gladsheim.v1.GladsheimService/StopService actor=nobody outcome=PermissionDenied")
	s.file(s.host.AgentLog, read(t, s.host.AgentLog)+"goroutine 1 [running]:\nmain.main()\n\tx.go:1 +0x1 msg=call\nmsg=\"half a li")
	require.Equal(t, Report{}, s.audit(s.whole()))
}

func TestRecordsOfAnotherBootAreNothing(t *testing.T) {
	s := newStage(t)
	s.file(s.host.Proc+"/sys/kernel/random/boot_id", "another\n")
	r := s.audit(Expectation{})
	require.NotEmpty(t, r.Findings)
	require.Contains(t, r.Findings[0].String(), "no record is there of it")
}

// TestWhatCanNotBeSeenIsSaid: an agent that is not there, a log that is not named,
// and files that may not be read.
func TestWhatCanNotBeSeenIsSaid(t *testing.T) {
	s := newStage(t)
	s.host.Socket, s.host.AgentLog = s.host.Socket+"-gone", ""
	r := s.audit(Expectation{})
	require.Empty(t, r.Findings)
	require.Len(t, r.Unchecked, 2)
	require.Contains(t, r.Unchecked[0], "what the agent says")
	require.Contains(t, r.Unchecked[1], "I7")

	s = newStage(t)
	require.NoError(t, os.Remove(s.proc(100, "environ")))
	require.NoError(t, os.Mkdir(s.proc(100, "environ"), 0o700)) // root may read what has any mode
	r = s.audit(Expectation{})
	require.Empty(t, r.Findings)
	require.Len(t, r.Unchecked, 1)
	require.Contains(t, r.Unchecked[0], "what web has of the agent's")

	_, err := Audit(t.Context(), Host{State: "/nonexistent", Run: "/nonexistent", Proc: s.host.Proc}, Expectation{}, 0)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// An agent that is not there can not have seen an end.
func TestAnEndThatNobodySaw(t *testing.T) {
	s := newStage(t)
	require.NoError(t, os.RemoveAll(s.host.Proc+"/100"))
	says := []Finding{{"I6", "web", "its record says that it runs as process 100, which is no more"}}
	require.Equal(t, says, s.audit(Expectation{}).Findings)
	s.host.Socket = ""
	require.Empty(t, s.audit(Expectation{}).Findings)
}

func TestAFirstThreadThatEndedIsNoEnd(t *testing.T) {
	s := newStage(t)
	stat := strings.Fields(read(t, s.proc(100, "stat")))
	for i, field := range stat {
		if field == "S" {
			stat[i], stat[i+17] = "Z", "2"
		}
	}
	s.file(s.proc(100, "stat"), strings.Join(stat, " "))
	require.Empty(t, s.audit(Expectation{}).Findings)
}

// A mark that no name fits may be another agent's, which is no fault.
func TestMarksOfNobodyAreNoted(t *testing.T) {
	s := newStage(t)
	s.process(111, 1, 8000, "/user.slice", s.brand("forgotten", 1))
	s.process(110, 1, 8000, "/user.slice", s.brand("forgotten", 1))
	r := s.audit(Expectation{})
	require.Empty(t, r.Findings)
	require.Equal(t, []string{"processes [110 111] carry a mark of an agent, of a service that is not registered here"}, r.Notes)
}

// TestAFindingIsWhatStays: a host that comes to rest within the grace is whole.
func TestAFindingIsWhatStays(t *testing.T) {
	s := newStage(t)
	s.group("/gladsheim/svc-web-00000002")
	looks := 0
	s.asked = func() {
		if looks++; looks == 3 {
			require.NoError(t, os.Remove(s.host.Cgroups+"/gladsheim/svc-web-00000002"))
		}
	}
	r, err := Audit(t.Context(), s.host, Expectation{}, time.Minute)
	require.NoError(t, err)
	require.Empty(t, r.Findings)
	require.Equal(t, 3, looks)

	// A look that takes longer than the grace is not the last one.
	s.group("/gladsheim/svc-web-00000002")
	s.asked = func() {
		time.Sleep(2 * pause)
		s.asked = func() { require.NoError(t, os.Remove(s.host.Cgroups+"/gladsheim/svc-web-00000002")) }
	}
	r, err = Audit(t.Context(), s.host, Expectation{}, pause)
	require.NoError(t, err)
	require.Empty(t, r.Findings)

	s.asked = nil
	s.group("/gladsheim/svc-web-00000002")
	began := time.Now()
	r, err = Audit(t.Context(), s.host, Expectation{}, 2*pause)
	require.NoError(t, err)
	require.Len(t, r.Findings, 1)
	require.GreaterOrEqual(t, time.Since(began), 2*pause)
}

// TestNumbersOfTheRecords: the auditor's own copies of numbers in the agent's records.
func TestNumbersOfTheRecords(t *testing.T) {
	require.EqualValues(t, service.VerdictHookFailed+1, noVerdicts, "the last verdict is %v", service.VerdictHookFailed)
	for s := range state(11) {
		require.Equal(t, service.State(s).Alive(), s.alive(), "%v", service.State(s))
	}
	require.Panics(t, func() { _ = service.State(11).String() }, "there are more states")
}

// TestWhatFollowsAnEndIsOfTheService: post_stop hooks of a service in a scope run in the
// slice around that, while it is cleared.
func TestWhatFollowsAnEndIsOfTheService(t *testing.T) {
	s := newStage(t)
	cell := `/gladsheim.slice/gladsheim-web\x2d00000003.slice/gladsheim-run-1`
	require.NoError(t, os.RemoveAll(s.host.Cgroups+webGroup))
	s.group(cell)
	s.process(100, 1, webStart, cell, 0)
	s.process(101, 100, 5001, cell, 0)
	s.web(6, 3, 99)
	s.answers("web", 3, gladsheimv1.ServiceState_SERVICE_STATE_STOPPING)
	r, err := Audit(context.Background(), s.host, Expectation{}, 0)
	require.NoError(t, err)
	require.Empty(t, r.Findings)

	s.web(0, 3, 0)
	s.ends(1, 2, 3)
	s.answers("web", 3, gladsheimv1.ServiceState_SERVICE_STATE_STOPPED)
	r, err = Audit(context.Background(), s.host, Expectation{}, 0)
	require.NoError(t, err)
	require.NotEmpty(t, r.Findings, "a program of a service that has ended")
}

// TestWhoIsBoundIsBegunAgain: an end with what a service is bound to is no failure, and is
// followed by a restart all the same.
func TestWhoIsBoundIsBegunAgain(t *testing.T) {
	s := newStage(t)
	s.webRestarted(4, 3, 100, 2)
	bound := func(n int) end {
		return end{"Incarnation": n, "Exit": map[string]any{"Signal": 15}, "Verdict": 2, "After": map[string]any{"State": 10}}
	}
	s.ends(bound(1), bound(2))
	r, err := Audit(context.Background(), s.host, Expectation{}, 0)
	require.NoError(t, err)
	require.Empty(t, r.Findings)
}
