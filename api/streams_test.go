package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/api/apitest"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func ptr[T any](v T) *T { return &v }

// short is a sequence as the scripted agent counts; 0 is nobody's.
func short(sequence uint64) uint64 { return max(sequence, apitest.Before) - apitest.Before }

// said is a watch event in a word or two.
func said(ev *gladsheimv1.WatchEvent) string {
	switch item := ev.GetItem().(type) {
	case *gladsheimv1.WatchEvent_Snapshot:
		return "snapshot " + item.Snapshot.GetServiceName()
	case *gladsheimv1.WatchEvent_Synced:
		return fmt.Sprintf("synced %d", short(ev.GetSequence()))
	case *gladsheimv1.WatchEvent_Gap:
		return fmt.Sprintf("gap %d-%d", short(item.Gap.GetFromSequence()), short(item.Gap.GetToSequence()))
	case *gladsheimv1.WatchEvent_Event:
		return fmt.Sprintf("%d %s %s", short(ev.GetSequence()), item.Event.GetServiceName(), item.Event.GetKind())
	}
	return "?"
}

// heard reads a watch up to synced.
func heard(t *testing.T, s grpc.ServerStreamingClient[gladsheimv1.WatchEvent]) []string {
	t.Helper()
	var out []string
	for {
		ev, err := s.Recv()
		require.NoError(t, err)
		out = append(out, said(ev))
		if ev.GetSynced() != nil {
			return out
		}
	}
}

func to(s service.State) func(*service.Status) {
	return func(st *service.Status) { st.Machine.State = s }
}

func TestWatch(t *testing.T) {
	f := newFixture(t)
	f.agent.Keep = 4
	for i := range 6 { // 1..6, of which 3..6 are kept
		f.agent.Change([]string{"web", "db"}[i%2], service.NoticeState, "asked", "", to(service.Running))
	}
	watch := func(req *gladsheimv1.WatchRequest) grpc.ServerStreamingClient[gladsheimv1.WatchEvent] {
		s, err := gladsheimv1.NewEventServiceClient(f.conn).Watch(callContext(t), req)
		require.NoError(t, err)
		return s
	}
	for name, c := range map[string]struct {
		req  *gladsheimv1.WatchRequest
		want []string
	}{
		"now":             {&gladsheimv1.WatchRequest{}, []string{"synced 6"}},
		"snapshot":        {&gladsheimv1.WatchRequest{Snapshot: true}, []string{"snapshot db", "snapshot mail", "snapshot web", "synced 6"}},
		"snapshot of one": {&gladsheimv1.WatchRequest{Snapshot: true, ServiceNames: []string{"web"}}, []string{"snapshot web", "synced 6"}},
		"count":           {&gladsheimv1.WatchRequest{BacklogCount: ptr(uint32(2))}, []string{"5 web ready", "6 db ready", "synced 6"}},
		"count of one":    {&gladsheimv1.WatchRequest{BacklogCount: ptr(uint32(9)), ServiceNames: []string{"db"}}, []string{"4 db ready", "6 db ready", "synced 6"}},
		"count of none":   {&gladsheimv1.WatchRequest{BacklogCount: ptr(uint32(0))}, []string{"synced 6"}},
		"since":           {&gladsheimv1.WatchRequest{BacklogSinceUnixMs: ptr(testTime.UnixMilli())}, []string{"3 web ready", "4 db ready", "5 web ready", "6 db ready", "synced 6"}},
		"since later":     {&gladsheimv1.WatchRequest{BacklogSinceUnixMs: ptr(testTime.UnixMilli() + 1)}, []string{"synced 6"}},
		"since earlier": {&gladsheimv1.WatchRequest{BacklogSinceUnixMs: ptr(testTime.UnixMilli() - 1), ServiceNames: []string{"db"}},
			[]string{"gap 0-2", "4 db ready", "6 db ready", "synced 6"}},
		"resume":            {&gladsheimv1.WatchRequest{AfterSequence: ptr(uint64(apitest.Before + 4))}, []string{"5 web ready", "6 db ready", "synced 6"}},
		"resume at the end": {&gladsheimv1.WatchRequest{AfterSequence: ptr(uint64(apitest.Before + 6))}, []string{"synced 6"}},
		"resume at the edge": {&gladsheimv1.WatchRequest{AfterSequence: ptr(uint64(apitest.Before + 2)), ServiceNames: []string{"db"}},
			[]string{"4 db ready", "6 db ready", "synced 6"}},
		"resume too late": {&gladsheimv1.WatchRequest{AfterSequence: ptr(uint64(apitest.Before + 0)), ServiceNames: []string{"db"}},
			[]string{"gap 1-2", "4 db ready", "6 db ready", "synced 6"}},
		"resume of another agent": {&gladsheimv1.WatchRequest{AfterSequence: ptr(uint64(apitest.Before + 900)), Snapshot: true, ServiceNames: []string{"db"}},
			[]string{"gap 0-6", "snapshot db", "synced 6"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, heard(t, watch(c.req)))
			c.req.BacklogOnly = true
			s := watch(c.req)
			require.Equal(t, c.want, heard(t, s))
			_, err := s.Recv()
			require.ErrorIs(t, err, io.EOF)
		})
	}
	_, err := watch(&gladsheimv1.WatchRequest{BacklogCount: ptr(uint32(1)), AfterSequence: ptr(uint64(apitest.Before + 1))}).Recv()
	refused(t, err, codes.InvalidArgument, "INVALID")
	_, err = watch(&gladsheimv1.WatchRequest{ServiceNames: make([]string, maxWatched+1)}).Recv()
	refused(t, err, codes.InvalidArgument, "INVALID")

	live := watch(&gladsheimv1.WatchRequest{ServiceNames: []string{"db"}})
	require.Equal(t, []string{"synced 6"}, heard(t, live))
	f.agent.Change("web", service.NoticeState, "", "", to(service.Stopping))
	f.agent.Change("db", service.NoticeExit, "crash", "it crashed", func(st *service.Status) {
		st.LastExit = &service.ExitRecord{Exit: service.Exit{Code: 3}, Verdict: service.VerdictCrash}
		st.LastActor = "uid 0 (root)"
	})
	ev, err := live.Recv()
	require.NoError(t, err)
	require.Equal(t, "8 db exited", said(ev))
	require.Equal(t, testTime.UnixMilli(), ev.GetTimeUnixMs())
	require.Equal(t, int32(3), ev.GetEvent().GetExit().GetExitCode())
	require.Equal(t, "crash", ev.GetEvent().GetReason())
	require.Equal(t, "it crashed", ev.GetEvent().GetDetail())
	require.Empty(t, ev.GetEvent().GetActor(), "nobody asked for it")
}

// Before anything has happened there is nothing to miss, save what an agent
// before this one told.
func TestTheFirstEvents(t *testing.T) {
	f := newFixture(t)
	watch := func(req *gladsheimv1.WatchRequest) grpc.ServerStreamingClient[gladsheimv1.WatchEvent] {
		s, err := gladsheimv1.NewEventServiceClient(f.conn).Watch(callContext(t), req)
		require.NoError(t, err)
		return s
	}
	live := watch(&gladsheimv1.WatchRequest{})
	require.Equal(t, []string{"synced 0"}, heard(t, live))
	require.Equal(t, []string{"gap 0-0", "synced 0"}, heard(t, watch(&gladsheimv1.WatchRequest{AfterSequence: ptr(uint64(7)), BacklogOnly: true})))
	resumed := watch(&gladsheimv1.WatchRequest{AfterSequence: ptr(uint64(7))})
	gap, err := resumed.Recv()
	require.NoError(t, err)
	require.EqualValues(t, 8, gap.GetGap().GetFromSequence())
	require.EqualValues(t, apitest.Before, gap.GetGap().GetToSequence())
	require.EqualValues(t, apitest.Before, gap.GetSequence(), "what to resume from never goes back")
	require.Equal(t, []string{"synced 0"}, heard(t, resumed))
	f.agent.Change("web", service.NoticeState, "", "", to(service.Running))
	for _, s := range []grpc.ServerStreamingClient[gladsheimv1.WatchEvent]{live, resumed} {
		ev, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, "1 web ready", said(ev), "no gap before it")
	}
}

// What happens to others costs a subscriber no look at its own service.
func TestASubscriberLooksWhenItIsConcerned(t *testing.T) {
	f := newFixture(t)
	var looks atomic.Int32
	f.agent.Before = func(_ context.Context, method string) error {
		if method == "CheckHealth" {
			looks.Add(1)
		}
		return nil
	}
	s, err := f.gladsheim().SubscribeServiceHealth(callContext(t), &gladsheimv1.HealthSubscribeRequest{ServiceName: "web"})
	require.NoError(t, err)
	_, err = s.Recv()
	require.NoError(t, err)
	for range 50 {
		f.agent.Change("db", service.NoticeState, "", "", to(service.Running))
	}
	f.agent.Change("web", service.NoticeHealth, "", "", func(st *service.Status) { st.Health.Status = service.Ill })
	u, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_UNHEALTHY, u.GetHealth().GetStatus())
	require.EqualValues(t, 2, looks.Load())
}

// A client has one connection for all its calls. Its subscriptions, one for each
// service, must leave room for the others.
func TestManySubscriptionsLeaveRoomForCalls(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(callContext(t))
	for range maxStreamsPerUser - 1 {
		s, err := f.gladsheim().SubscribeServiceHealth(ctx, &gladsheimv1.HealthSubscribeRequest{ServiceName: "web"})
		require.NoError(t, err)
		_, err = s.Recv()
		require.NoError(t, err)
	}
	_, err := f.gladsheim().StopService(ctx, &gladsheimv1.StopServiceRequest{ServiceName: "web"})
	require.NoError(t, err)
	cancel()
	require.Eventually(t, func() bool { return f.agent.Watchers() == 0 }, 10*time.Second, 5*time.Millisecond)
}

// A watcher that does not read is not waited for, and told so.
func TestASlowWatcherMissesSome(t *testing.T) {
	f := newFixture(t)
	f.agent.Backlog, f.agent.Keep = 2, 3
	conn := f.dial("unix://"+f.path, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	s, err := gladsheimv1.NewEventServiceClient(conn).Watch(callContext(t), &gladsheimv1.WatchRequest{Snapshot: true, ServiceNames: []string{"web"}})
	require.NoError(t, err)
	require.Equal(t, []string{"snapshot web", "synced 0"}, heard(t, s))
	detail := strings.Repeat("x", maxText)
	change := func() { f.agent.Change("web", service.NoticeState, "", detail, to(service.Running)) }
	const changes = 200 // far more than the watch and the connection hold
	for range changes {
		change()
	}
	// Nothing comes after them that would show that the last ones are missing.
	gaps, snapshots, syncs, last := 0, 0, 0, uint64(apitest.Before)
	for short(last) < changes || syncs < gaps {
		ev, err := s.Recv()
		require.NoError(t, err)
		switch {
		case ev.GetSnapshot() != nil:
			snapshots++
			require.GreaterOrEqual(t, ev.GetSequence(), last)
		case ev.GetSynced() != nil:
			syncs++
			require.Equal(t, last, ev.GetSequence())
		case ev.GetGap() != nil:
			gaps++
			require.Equal(t, last+1, ev.GetGap().GetFromSequence())
			require.Equal(t, ev.GetSequence(), ev.GetGap().GetToSequence())
			require.Greater(t, ev.GetSequence(), last)
			last = ev.GetSequence()
		default:
			require.Equal(t, last+1, ev.GetSequence())
			last++
		}
	}
	require.NotZero(t, gaps)
	require.Equal(t, []int{gaps, gaps}, []int{snapshots, syncs}, "fresh ones for each gap")
	change()
	after, err := s.Recv()
	require.NoError(t, err)
	require.Equal(t, "201 web ready", said(after), "it is told of no hole twice")
}

// What a watcher was too slow for it is told all the same, as long as it is kept.
func TestASlowWatcherMissesNothingThatIsKept(t *testing.T) {
	f := newFixture(t)
	f.agent.Backlog = 2
	conn := f.dial("unix://"+f.path, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	s, err := gladsheimv1.NewEventServiceClient(conn).Watch(callContext(t), &gladsheimv1.WatchRequest{Snapshot: true, ServiceNames: []string{"web"}})
	require.NoError(t, err)
	require.Equal(t, []string{"snapshot web", "synced 0"}, heard(t, s))
	const changes = 200 // far more than the watch and the connection hold
	for range changes {
		f.agent.Change("web", service.NoticeState, "", strings.Repeat("x", maxText), to(service.Running))
	}
	for i := range changes {
		ev, err := s.Recv()
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%d web ready", i+1), said(ev))
	}
}

// busyStream is a subscription whose client is slow to take what is sent.
type busyStream struct {
	grpc.ServerStreamingServer[gladsheimv1.HealthUpdate]
	ctx  context.Context
	send func(*gladsheimv1.HealthUpdate) error
}

func (b *busyStream) Context() context.Context               { return b.ctx }
func (b *busyStream) Send(u *gladsheimv1.HealthUpdate) error { return b.send(u) }

// A subscriber to whom the last notice was lost, its own, looks all the same.
func TestASlowSubscriberLooksAgain(t *testing.T) {
	f := newFixture(t)
	f.agent.Backlog = 1
	ctx, cancel := context.WithCancel(callContext(t))
	defer cancel()
	var told []gladsheimv1.HealthStatus
	s := &busyStream{ctx: ctx, send: func(u *gladsheimv1.HealthUpdate) error {
		if told = append(told, u.GetHealth().GetStatus()); len(told) == 2 {
			cancel()
			return nil
		}
		f.agent.Change("db", service.NoticeState, "", "", to(service.Running))
		f.agent.Change("web", service.NoticeHealth, "", "", func(st *service.Status) { st.Health.Status = service.Ill })
		return nil
	}}
	err := (&gladsheim{Server: f.server}).SubscribeServiceHealth(&gladsheimv1.HealthSubscribeRequest{ServiceName: "web"}, s)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, []gladsheimv1.HealthStatus{gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, gladsheimv1.HealthStatus_HEALTH_STATUS_UNHEALTHY}, told)
}

func TestEventWords(t *testing.T) {
	for want, n := range map[string]service.Notice{
		"ready":          {Kind: service.NoticeState, State: service.Running},
		"log_disk_full":  {Kind: service.NoticeState, Reason: "log_disk_full", State: service.Running},
		"unrecorded":     {Kind: service.NoticeState, Reason: "unrecorded", State: service.Running},
		"crashed":        {Kind: service.NoticeState, State: service.Crashed},
		"oom-killed":     {Kind: service.NoticeExit, Exit: &service.ExitRecord{Verdict: service.VerdictHostOOM}},
		"exited":         {Kind: service.NoticeExit, Exit: &service.ExitRecord{Verdict: service.VerdictCrash}},
		"unhealthy":      {Kind: service.NoticeHealth, Health: service.Ill},
		"limits-changed": {Kind: service.NoticeLimits, State: service.Running},
		"registered":     {Kind: service.NoticeRegistered},
		"unregistered":   {Kind: service.NoticeUnregistered},
	} {
		require.Equal(t, want, eventKind(n))
		require.Equal(t, want, toWatchEvent(n).GetEvent().GetKind())
	}
	for _, aside := range []string{"reload", "schedule", "hook", "notify", "reloading", "reloaded", "says-stopping", "main-process"} { // it was ready before
		require.Equal(t, aside, eventKind(service.Notice{Kind: service.NoticeState, Reason: aside, State: service.Running}))
	}
	require.Equal(t, "uid 7", toWatchEvent(service.Notice{Kind: service.NoticeState, Reason: "asked", Actor: "uid 7"}).GetEvent().GetActor())
}

func TestSubscribeServiceHealth(t *testing.T) {
	f := newFixture(t)
	s, err := f.gladsheim().SubscribeServiceHealth(callContext(t), &gladsheimv1.HealthSubscribeRequest{ServiceName: "web"})
	require.NoError(t, err)
	next := func() *gladsheimv1.HealthUpdate {
		u, err := s.Recv()
		require.NoError(t, err)
		return u
	}
	first := next()
	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_HEALTHY, first.GetHealth().GetStatus())
	require.False(t, first.GetStateChanged())
	require.InDelta(t, time.Now().Unix(), first.GetUpdateTimeUnix(), 30)

	f.agent.Change("web", service.NoticeState, "", "", func(*service.Status) {}) // nothing about health
	f.agent.Change("web", service.NoticeHealth, "", "", func(st *service.Status) { st.Health.Status = service.Ill })
	second := next()
	require.Equal(t, gladsheimv1.HealthStatus_HEALTH_STATUS_UNHEALTHY, second.GetHealth().GetStatus())
	require.True(t, second.GetStateChanged())

	require.NoError(t, f.agent.Unregister(context.Background(), service.MustName("db"), ""))
	gone, err := f.gladsheim().SubscribeServiceHealth(callContext(t), &gladsheimv1.HealthSubscribeRequest{ServiceName: "mail", UpdateIntervalMs: ptr(uint32(100))})
	require.NoError(t, err)
	for range 3 { // by the interval alone
		u, err := gone.Recv()
		require.NoError(t, err)
		require.False(t, u.GetStateChanged())
	}
	require.NoError(t, f.agent.Unregister(context.Background(), service.MustName("mail"), ""))
	for err == nil {
		_, err = gone.Recv()
	}
	refused(t, err, codes.NotFound, service.ReasonServiceNotFound)

	eager, err := f.gladsheim().SubscribeServiceHealth(callContext(t), &gladsheimv1.HealthSubscribeRequest{ServiceName: "web", UpdateIntervalMs: ptr(uint32(1))})
	require.NoError(t, err)
	began := time.Now()
	for range 3 { // at once, and then no oftener than every 100 ms
		_, err = eager.Recv()
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, time.Since(began), 2*minHealthInterval-20*time.Millisecond)
}

func TestTail(t *testing.T) {
	f := newFixture(t)
	var all []string
	for i := range 30 {
		all = append(all, fmt.Sprintf("line %d", i))
	}
	path := filepath.Join(f.agent.LogDir, "web.log")
	require.NoError(t, os.WriteFile(path, []byte(strings.Join(all, "\n")+"\n"), 0o600))
	tail := func(req *gladsheimv1.TailRequest) grpc.ServerStreamingClient[gladsheimv1.LogLine] {
		req.ServiceName = "web"
		s, err := gladsheimv1.NewLogServiceClient(f.conn).Tail(callContext(t), req)
		require.NoError(t, err)
		return s
	}
	lines := func(s grpc.ServerStreamingClient[gladsheimv1.LogLine]) (out []string) {
		for {
			l, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return out
			}
			require.NoError(t, err)
			out = append(out, string(l.GetLine()))
		}
	}
	require.Equal(t, all[20:], lines(tail(&gladsheimv1.TailRequest{})))
	require.Equal(t, all[27:], lines(tail(&gladsheimv1.TailRequest{Lines: ptr(uint32(3))})))
	require.Equal(t, all, lines(tail(&gladsheimv1.TailRequest{Lines: ptr(uint32(1 << 31))})))
	require.Empty(t, lines(tail(&gladsheimv1.TailRequest{Lines: ptr(uint32(0))})))
	require.Equal(t, []string{"line 9", "line 19", "line 29"}, lines(tail(&gladsheimv1.TailRequest{Grep: "9$"})))

	require.Equal(t, all, lines(tail(&gladsheimv1.TailRequest{SinceUnixMs: 1})))
	require.Equal(t, all[28:], lines(tail(&gladsheimv1.TailRequest{SinceUnixMs: 1, Lines: ptr(uint32(2))})))
	later := time.Now().Add(time.Hour)
	require.Empty(t, lines(tail(&gladsheimv1.TailRequest{SinceUnixMs: later.UnixMilli()})))
	require.NoError(t, os.Chtimes(path, later, later.Add(time.Hour)))
	_, err := tail(&gladsheimv1.TailRequest{SinceUnixMs: later.UnixMilli()}).Recv()
	s := refused(t, err, codes.FailedPrecondition, "CONFLICT")
	require.Contains(t, s.Message(), "number of lines")
	_, err = tail(&gladsheimv1.TailRequest{Grep: "("}).Recv()
	refused(t, err, codes.InvalidArgument, "INVALID")
	_, err = tail(&gladsheimv1.TailRequest{Grep: strings.Repeat("x", maxPattern+1)}).Recv()
	refused(t, err, codes.InvalidArgument, "INVALID")

	_, err = tail(&gladsheimv1.TailRequest{After: "there"}).Recv()
	refused(t, err, codes.InvalidArgument, "INVALID")
	_, err = tail(&gladsheimv1.TailRequest{After: "file:100000"}).Recv()
	refused(t, err, codes.FailedPrecondition, "CONFLICT")

	live := tail(&gladsheimv1.TailRequest{Lines: ptr(uint32(1)), Follow: true})
	l, err := live.Recv()
	require.NoError(t, err)
	require.Equal(t, "line 29", string(l.GetLine()))
	last := l.GetPosition()
	require.Empty(t, lines(tail(&gladsheimv1.TailRequest{After: last})))
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	defer file.Close()
	_, err = file.WriteString("more\xff\n")
	require.NoError(t, err)
	l, err = live.Recv()
	require.NoError(t, err)
	require.Equal(t, "more\xff", string(l.GetLine()))
	require.Equal(t, []string{"more\xff"}, lines(tail(&gladsheimv1.TailRequest{After: last})))

	// Who goes on behind a line gets all that comes next, however much: other lines are
	// looked for in the last 64 MiB.
	const many = 1100
	for range many {
		_, err = fmt.Fprintf(file, "%063999d\n", 0)
		require.NoError(t, err)
	}
	for _, n := range []*uint32{nil, ptr(uint32(math.MaxUint32))} {
		require.Len(t, lines(tail(&gladsheimv1.TailRequest{After: last, Lines: n})), many+1)
	}

	for range many {
		_, err = live.Recv()
		require.NoError(t, err)
	}
	f.agent.Change("web", service.NoticeState, "", "", to(service.Stopped)) // it outlives a stop
	require.NoError(t, f.agent.Unregister(context.Background(), service.MustName("web"), ""))
	_, err = live.Recv()
	require.ErrorIs(t, err, io.EOF)

	f.put("web", service.Stopped).Status.Spec.Log = service.LogNull
	_, err = tail(&gladsheimv1.TailRequest{}).Recv()
	refused(t, err, codes.FailedPrecondition, "CONFLICT")
	f.put("web", service.Stopped)
	require.NoError(t, os.Remove(path))
	require.Empty(t, lines(tail(&gladsheimv1.TailRequest{})), "it never wrote")
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = tail(&gladsheimv1.TailRequest{}).Recv()
	refused(t, err, codes.Unavailable, "HOST_UNAVAILABLE")
}

// Streams whose callers leave leave nothing behind; goleak sees to the rest.
func TestStreamsThatAreLeft(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(callContext(t))
	for range 10 {
		s, err := gladsheimv1.NewLogServiceClient(f.conn).Tail(ctx, &gladsheimv1.TailRequest{ServiceName: "web", Follow: true})
		require.NoError(t, err)
		go func() { _, _ = s.Recv() }()
		h, err := f.gladsheim().SubscribeServiceHealth(ctx, &gladsheimv1.HealthSubscribeRequest{ServiceName: "web"})
		require.NoError(t, err)
		_, err = h.Recv()
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return f.agent.Watchers() == 20 }, 10*time.Second, 5*time.Millisecond)
	cancel()
	require.Eventually(t, func() bool { return f.agent.Watchers() == 0 }, 10*time.Second, 5*time.Millisecond)
}
