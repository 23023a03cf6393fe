package roskva

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/watch"
)

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		serve()
		return
	}
	goleak.VerifyTestMain(m)
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// ask carries out one check, in each way in which that can be done: what came of it is the
// same.
func ask(t *testing.T, patience time.Duration, check service.Check) error {
	t.Helper()
	question, asked := prepare(check, nil)
	waited := question(within(t, patience))
	if asked == nil {
		return waited
	}
	to, plain := asked.plain()
	if !plain {
		return waited
	}
	talked := converse(t, asked, to, patience)
	if waited == nil || talked == nil {
		require.Equal(t, waited, talked)
	} else {
		require.Equal(t, errors.Is(waited, context.DeadlineExceeded), errors.Is(talked, context.DeadlineExceeded), "%v; %v", waited, talked)
	}
	return talked
}

// converse has a talk, and waits for what comes of it.
func converse(t *testing.T, asked *server, to netip.AddrPort, patience time.Duration) error {
	t.Helper()
	loop, err := watch.New()
	require.NoError(t, err)
	defer loop.Close()
	over := make(chan error, 2)
	talk := newTalk(asked, to, func(err error, _ time.Duration) { over <- err })
	talk.begin(patience)
	talk.look()
	talk.await(loop)
	err = <-over
	require.Empty(t, over)
	return err
}

// answering is where a server listens that does so much for each connection, until the test
// ends.
func answering(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// heard is what comes of an answer that is heard in one piece, and in pieces of a length.
func heard(t *testing.T, asked *server, says []byte, piece int) (atOnce, inPieces error) {
	ended, atOnce := asked.begin().hear(says, true)
	require.True(t, ended)
	e := asked.begin()
	piece, ended = max(piece, len(says)/1000+1), false
	for n := piece; n < len(says) && !ended; n += piece {
		ended, inPieces = e.hear(says[:n], false)
	}
	if !ended {
		ended, inPieces = e.hear(says, true)
		require.True(t, ended)
	}
	return atOnce, inPieces
}

func noExcuse() error { return nil }

// newRoskva is one that asks exactly at the intervals, and is closed with the test.
func newRoskva(t *testing.T, report Reporter) *Roskva {
	t.Helper()
	if report == nil {
		report = func(service.Name, service.Health) {}
	}
	r := New(report)
	r.spread = func(d time.Duration) time.Duration { return d }
	t.Cleanup(r.Close)
	return r
}

func TestAskHTTP(t *testing.T) {
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(make([]byte, 1<<20), "late"...)) })
	mux.HandleFunc("/words", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("well done")) })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { <-release })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	defer close(release)
	get := func(path string, patience time.Duration, more ...func(*service.Check)) error {
		check := service.Check{Type: service.CheckHTTP, URL: srv.URL + path}
		for _, change := range more {
			change(&check)
		}
		return ask(t, patience, check)
	}
	status := func(text string) func(*service.Check) {
		r, err := service.ParseStatusRange(text)
		require.NoError(t, err)
		return func(c *service.Check) { c.Status = append(c.Status, r) }
	}
	body := func(pattern string) func(*service.Check) { return func(c *service.Check) { c.Body = pattern } }
	require.NoError(t, get("/ok", 10*time.Second))
	require.ErrorContains(t, get("/bad", 10*time.Second), "503")
	require.NoError(t, get("/bad", 10*time.Second, status("200-299"), status("503")))
	require.ErrorContains(t, get("/ok", 10*time.Second, status("201-299")), "200 OK")
	require.ErrorContains(t, get("/away", 10*time.Second), "302", "a redirect is not followed")
	require.ErrorIs(t, get("/slow", 50*time.Millisecond), context.DeadlineExceeded)
	require.NoError(t, get("/words", 10*time.Second, body("^well done$")))
	require.ErrorContains(t, get("/words", 10*time.Second, body("^well$")), "does not match")
	require.ErrorContains(t, get("/ok", 10*time.Second, body("late")), "does not match", "what comes after 64 KiB is not read")
}

func TestAskTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	check := service.Check{Type: service.CheckTCP, Address: l.Addr().String()}
	require.NoError(t, ask(t, 10*time.Second, check))
	require.NoError(t, l.Close())
	require.Error(t, ask(t, 10*time.Second, check))
}

func TestAskGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv, h := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, h)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	check := service.Check{Type: service.CheckGRPC, Address: l.Addr().String()}
	require.NoError(t, ask(t, 10*time.Second, check))
	h.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	require.ErrorContains(t, ask(t, 10*time.Second, check), "NOT_SERVING")
	check.Service = "nobody"
	require.Error(t, ask(t, 10*time.Second, check))
}

func TestAwaitReturnsWhenReady(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	r := newRoskva(t, nil)
	require.NoError(t, r.Await(within(t, 30*time.Second), service.Check{Type: service.CheckHTTP, URL: srv.URL}, nil))
	require.EqualValues(t, 3, asked.Load())
}

// One that takes its time to answer is ready all the same.
func TestAwaitIsPatientWithOneAnswer(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer srv.Close()
	asked := time.Now()
	time.AfterFunc(1500*time.Millisecond, func() { close(release) })
	require.NoError(t, newRoskva(t, nil).Await(within(t, 30*time.Second), service.Check{Type: service.CheckHTTP, URL: srv.URL}, nil))
	require.GreaterOrEqual(t, time.Since(asked), 1500*time.Millisecond, "by the first answer")
}

// After one has left nothing of what was attended is told, however late the last
// answer comes.
func TestNothingIsToldAfterLeaving(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{}; <-release }))
	defer srv.Close()
	var mu sync.Mutex
	var told []string
	r := newRoskva(t, func(_ service.Name, h service.Health) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, h.Message)
	})
	check := service.Check{Type: service.CheckHTTP, URL: srv.URL, Interval: time.Hour, Timeout: time.Hour, Threshold: 1}
	leave := r.Attend(service.MustName("web"), check, nil, noExcuse, func() { t.Error("unhealthy") })
	<-asked
	leave("it does not run")
	leave("it does not run")
	next := r.Attend(service.MustName("web"), service.Check{Type: service.CheckProcess}, nil, noExcuse, nil)
	close(release)
	r.Close()
	require.Equal(t, []string{"first check under way", "it does not run", "the main process runs"}, told)
	next("it does not run")
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	err := newRoskva(t, nil).Await(within(t, 50*time.Millisecond), service.Check{Type: service.CheckTCP, Address: "127.0.0.1:1"}, nil)
	require.ErrorContains(t, err, "connection refused")
}

// What a check said is told, and not that it was given up.
func TestAwaitTellsTheLastAnswer(t *testing.T) {
	var asked atomic.Int32
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) > 1 {
			<-release
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	defer close(release)
	check := service.Check{Type: service.CheckHTTP, URL: srv.URL}
	await := func() error { return newRoskva(t, nil).Await(within(t, 500*time.Millisecond), check, nil) }
	require.ErrorContains(t, await(), "503")
	require.EqualError(t, await(), srv.URL+" did not answer")
}

func TestJudge(t *testing.T) {
	check := service.Check{Type: service.CheckHTTP, Interval: time.Second, Timeout: time.Second, Threshold: 2}
	now, bad := time.Now(), errors.New("refused")
	h := Judge(service.Health{Status: service.Checking}, check, bad, 0, now, time.Hour)
	require.Equal(t, service.Checking, h.Status)
	require.Equal(t, 1, h.Failures)
	h = Judge(h, check, bad, 0, now, time.Hour)
	require.Equal(t, service.Ill, h.Status)
	require.Equal(t, "refused", h.Message)
	h = Judge(h, check, nil, 0, now, time.Hour)
	require.Equal(t, service.Healthy, h.Status)
	require.Zero(t, h.Failures)
	h = Judge(h, check, context.DeadlineExceeded, 0, now, time.Hour)
	require.Equal(t, service.Healthy, h.Status, "one failure is not an illness")
	h = Judge(h, check, context.DeadlineExceeded, 0, now, time.Hour)
	require.Equal(t, service.CheckTimedOut, h.Status)
	h = Judge(h, check, bad, 0, now, time.Hour)
	require.Equal(t, service.Ill, h.Status)
	h = Judge(service.Health{Status: service.Checking}, check, context.DeadlineExceeded, 0, now, time.Hour)
	require.Equal(t, service.Checking, h.Status)
}

// A failure is no failure of the service when we slept meanwhile (invariant I11).
func TestJudgeAfterOurOwnStall(t *testing.T) {
	check := service.Check{Type: service.CheckHTTP, Interval: time.Second, Timeout: time.Second, Threshold: 1}
	now := time.Now()
	h := service.Health{Status: service.Healthy}
	for _, err := range []error{context.DeadlineExceeded, syscall.ECONNRESET} { // it may have given us up
		after := Judge(h, check, err, time.Minute, now, time.Hour)
		require.Equal(t, service.Healthy, after.Status)
		require.Zero(t, after.Failures)
	}
	require.Equal(t, service.CheckTimedOut, Judge(h, check, context.DeadlineExceeded, 0, now, time.Hour).Status)
	require.Equal(t, service.Healthy, Judge(service.Health{}, check, nil, time.Minute, now, time.Hour).Status, "it did answer")
}

// What keeps us from asking is no failure of the service.
func TestJudgeWhatIsNotItsDoing(t *testing.T) {
	check := service.Check{Type: service.CheckExec, Interval: time.Second, Timeout: time.Second, Threshold: 1}
	healthy := service.Health{Status: service.Healthy}
	for _, err := range []error{
		&service.Error{Op: "run", Kind: service.HostUnavailable, Err: syscall.EMFILE}, &service.Error{Op: "run", Kind: service.Conflict, Err: errors.New("it is frozen")},
		&service.Error{Op: "run", Kind: service.NotRunning, Err: errors.New("it has ended")}, &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.ENFILE)}, fmt.Errorf("cannot watch fd 7: %w", syscall.ENOSPC),
	} {
		after := Judge(healthy, check, err, 0, time.Now(), time.Hour)
		require.Equal(t, service.Healthy, after.Status)
		require.Zero(t, after.Failures)
		require.Contains(t, after.Message, "it could not be asked")
	}
	missing := &service.Error{Op: "run", Kind: service.Unlaunchable, Err: syscall.ENOENT}
	require.Equal(t, service.Ill, Judge(healthy, check, missing, 0, time.Now(), time.Hour).Status)
}

// A failure that is excused has checks begin anew.
func TestJudgeTheExcused(t *testing.T) {
	check := service.Check{Type: service.CheckHTTP, Interval: time.Second, Timeout: time.Second, Threshold: 2}
	for _, before := range []service.Health{{Status: service.Healthy, Successes: 9}, {Status: service.Healthy, Failures: 1}, {Status: service.Ill, Failures: 2}} {
		after := Judge(before, check, excused{errors.New("dora has stopped it")}, time.Minute, time.Now(), time.Hour)
		require.Equal(t, service.Checking, after.Status)
		require.Zero(t, after.Failures+after.Successes)
		require.Equal(t, "it is not judged: dora has stopped it", after.Message)
	}
}

// A host that is a bit late each time keeps no hung service well; one that was away is
// blamed itself.
func TestBusyIsNotAsleep(t *testing.T) {
	check := service.Check{Interval: time.Second, Timeout: 10 * time.Second, Threshold: 1}
	for slept, failures := range map[time.Duration]int{0: 1, 600 * time.Millisecond: 1, tooLate + 1: 0, 10 * time.Second: 0} {
		after := Judge(service.Health{}, check, context.DeadlineExceeded, slept, time.Now(), time.Hour)
		require.Equal(t, failures, after.Failures, "%v: %s", slept, after.Message)
	}
}

// TestAttendReportsAndGivesUpOnce has nobody listen on a port, so that every
// check fails at once, inside a bubble of fake time.
func TestAttendReportsAndGivesUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []service.HealthStatus
		r := newRoskva(t, func(_ service.Name, h service.Health) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, h.Status)
		})
		called := 0
		check := service.Check{Type: service.CheckHTTP, URL: "gopher://nowhere", Interval: time.Second, Timeout: time.Second, Threshold: 2}
		leave := r.Attend(service.MustName("web"), check, nil, noExcuse, func() { called++ })
		time.Sleep(3500 * time.Millisecond)
		synctest.Wait()
		leave("it does not run")
		require.Equal(t, 1, called)
		require.Equal(t, []service.HealthStatus{
			service.Checking, service.Checking, service.Ill, service.Ill, service.Ill, service.HealthUnknown,
		}, seen)
	})
}

func TestProcessChecksCostNoGoroutine(t *testing.T) {
	var seen []service.HealthStatus
	r := newRoskva(t, func(_ service.Name, h service.Health) { seen = append(seen, h.Status) })
	leave := r.Attend(service.MustName("web"), service.Check{Type: service.CheckProcess}, nil, noExcuse, nil)
	leave("it does not run")
	r.Close()
	require.Equal(t, []service.HealthStatus{service.Healthy, service.HealthUnknown}, seen)
}
