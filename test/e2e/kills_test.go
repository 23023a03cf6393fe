package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
	"github.com/gladsheim/gladsheim/test/auditor"
)

// TestKillsAtRandom: the agent is killed at random moments while callers start and
// stop some services as fast as they can, others just run, others number the lines
// that they write, and others end while it is dead. It dies up to eight times in a row,
// while it takes up what there is as well as later. Then the auditor finds nothing:
// none of those that run was lost, none lives twice, every acknowledged start and stop
// holds. Every end has its exact code or signal, no event is missing, and in the end
// no line is.
func TestKillsAtRandom(t *testing.T) {
	toldOn(t, "systemd-new", "cgroup2", "bare")
	for _, mode := range preferred(t) {
		t.Run(mode, func(t *testing.T) {
			times, many := kills(t)
			w := newWorld(t)
			c := w.crowd(mode, many, times)
			began := time.Now()
			for told := 0; c.kills < times; {
				c.row(min(1+rand.IntN(inRow), times-c.kills))
				if c.kills/50 > told || c.kills == times {
					told = c.kills / 50
					t.Logf("%d kills in %v, %d services, 0 lost, 0 doubled; %d starts and stops acknowledged; all of %d ends in the absence known; %d events without a hole",
						c.kills, time.Since(began).Round(time.Second), many, c.acks, c.ends, c.events)
				}
			}
			t.Logf("all of %d lines", c.allLines())
		})
	}
}

// inRow is how often the agent is killed at most before the auditor looks, which takes
// as long as some kills do.
const inRow = 8

// kills is how often the agent is killed, and amid how many services:
// GLADSHEIM_TEST_KILLS times amid a hundred, if that is set.
func kills(t *testing.T) (times, services int) {
	if text := os.Getenv("GLADSHEIM_TEST_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		return n, 100
	}
	switch {
	case soak:
		return 1000, 100
	case host() == "bare": // which is not emulated
		return 100, 100
	}
	return 16, 20
}

// crowd is what lives while the agent is killed.
type crowd struct {
	*audited
	talkers, busy, mortals []string
	deaths                 int    // how many mortals end in each row
	token                  uint64 // of the latest event
	kills                  int    // so far, and what they left whole:
	acks, ends, events     int
}

// crowd starts so many services: of ten, five are steady, one talks, two are mortal,
// and two are busy.
func (w *world) crowd(mode string, many, times int) *crowd {
	w.t.Helper()
	names := func(kind string, n int, def func(name string) fields) (out []string) {
		for i := range n {
			name := fmt.Sprintf("%s-%d", kind, i)
			w.register(def(name).with(fields{"name": name, "launch": mode}))
			out = append(out, name)
		}
		return out
	}
	rest := func(string) fields { return fields{"exec": []string{"/bin/sleep", "infinity"}} }
	tenth := max(many/10, 1)
	c := &crowd{audited: w.audited(names("steady", 5*tenth, rest)...), busy: names("busy", 2*tenth, rest)}
	c.talkers = names("talker", tenth, func(name string) fields {
		if name == "talker-0" { // its log is in the journal where there is one, and less than that keeps in all
			return workload(w.t, name, name, "talk", "200", fmt.Sprint(min(200, 20_000/times)))
		}
		// Its log is cut many times.
		return workload(w.t, name, name, "talk", "200", "20").with(fields{"log": "file", "log_rotate": fields{"size": "64KiB", "total": "1GiB"}})
	})
	c.mortals = names("mortal", 2*tenth, func(name string) fields {
		require.NoError(w.t, unix.Mkfifo(w.path(name), 0o600))
		return fields{"exec": []string{"/bin/sh", "-c", "read code <" + w.path(name) + "; exit $code"}, "log": "null", "restart": fields{"policy": "never"}}
	})
	c.deaths = min(1+len(fates)*inRow/2/times, len(c.mortals))
	for _, name := range c.talkers {
		byGRPC{w}.start(name)
	}
	c.token = w.sequence()
	return c
}

// row has the agent killed so many times, some mortals ended before there is another,
// and all of it audited.
func (c *crowd) row(times int) {
	c.t.Helper()
	// The auditor reads the log whole, and has read what is there.
	require.NoError(c.t, c.log.Truncate(0))
	doomed, doom := c.doom(), rand.IntN(times)
	acked := make([]acknowledged, len(c.busy))
	var moments []time.Duration
	for n := range times {
		if n > 0 {
			c.launch()
		}
		moments = append(moments, c.kill(acked))
		if n == doom {
			for _, d := range doomed {
				c.meet(d)
			}
		}
	}
	c.begin()
	c.expect.Acked = nil
	for _, of := range acked {
		c.expect.Acked = append(c.expect.Acked, of...)
	}
	c.acks += len(c.expect.Acked)
	what := fmt.Sprintf("kills %d to %d, after %v", c.kills, c.kills+times-1, moments)
	c.kills += times
	c.audit(what)
	for _, d := range doomed {
		c.told(what, d)
	}
	kinds, last := c.resume(c.token)
	c.token, c.events = last, c.events+len(kinds)
}

// kill has the agent killed at a random moment from now on, or from when it is ready,
// and tells how long after. What is acknowledged until then goes to what was of the
// service.
func (c *crowd) kill(acked []acknowledged) (moment time.Duration) {
	c.t.Helper()
	longest, callers := time.Second, len(c.busy)
	if os.Getenv("GLADSHEIM_TEST_HOST") != "bare" { // an emulated host is slow to answer, and answers none of many
		longest, callers = 2*longest, min(4, callers)
	}
	ctx, gone := context.WithCancel(c.t.Context())
	var calls sync.WaitGroup
	for _, i := range rand.Perm(len(c.busy))[:callers] {
		calls.Go(func() { acked[i] = c.traffic(ctx, c.busy[i], acked[i]) })
	}
	if rand.IntN(3) > 0 { // else it may be about to take up what there is
		c.ready()
	}
	moment = time.Duration(rand.Int64N(int64(longest)))
	time.Sleep(moment) // that is the moment
	c.leave(syscall.SIGKILL)
	gone() // else who waits for it would wait for the next
	calls.Wait()
	return moment
}

// fates are all ends that a program can come to: each code, and each signal that
// kills, of those for everybody's own use the first few.
var fates = func() (all []fate) {
	for code := range 256 {
		all = append(all, fate{code: code})
	}
	for signal := syscall.Signal(1); signal < 41; signal++ {
		switch signal {
		case syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH, // are ignored
			syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, // stop
			32, 33: // belong to the C library
		default:
			all = append(all, fate{signal: signal})
		}
	}
	return all
}()

type fate struct {
	code   int
	signal syscall.Signal
}

// doomed is a mortal, and what is to become of it.
type doomed struct {
	fate
	name        string
	incarnation uint64
	process     relative
}

// doom starts mortals, and gives each the next fate.
func (c *crowd) doom() []doomed {
	c.t.Helper()
	out, faults := make([]doomed, c.deaths), make([]error, c.deaths)
	var starts sync.WaitGroup
	for i := range out {
		at := c.ends + i
		d := &out[i]
		d.name, d.fate = c.mortals[at%len(c.mortals)], fates[at%len(fates)]
		starts.Go(func() {
			ctx, req := contextFor(c.t), &gladsheimv1.StartServiceRequest{ServiceName: d.name}
			s, err := c.services().StartService(ctx, req)
			for status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil { // an emulated host was too slow for it
				s, err = c.services().StartService(ctx, req)
			}
			d.incarnation, d.process, faults[i] = s.GetIncarnation(), relative{pid: int(s.GetProcessId())}, err
		})
	}
	starts.Wait()
	for i, d := range out {
		require.NoError(c.t, faults[i], d.name)
		stat, err := statOf(d.process.pid)
		require.NoError(c.t, err, d.name)
		out[i].process.start = stat[19]
	}
	return out
}

// meet has a mortal end as it is to, and waits until it has.
func (c *crowd) meet(d doomed) {
	c.t.Helper()
	if d.signal != 0 {
		require.NoError(c.t, syscall.Kill(d.process.pid, d.signal))
	} else {
		eventually(c.t, d.name+" listens", func() bool {
			fifo, err := os.OpenFile(c.path(d.name), os.O_WRONLY|syscall.O_NONBLOCK, 0)
			if err != nil {
				require.ErrorIs(c.t, err, syscall.ENXIO)
				return false
			}
			defer fifo.Close()
			_, err = fmt.Fprintln(fifo, d.code)
			require.NoError(c.t, err)
			return true
		})
	}
	eventually(c.t, d.name+" has ended", func() bool { return !d.process.lives() })
}

// told holds that the record of an end says what it was.
func (c *crowd) told(what string, d doomed) {
	c.t.Helper()
	var x *gladsheimv1.ExitRecord
	eventually(c.t, d.name+" is known to have ended", func() bool {
		if exits := (byGRPC{c.world}).exits(d.name).Exits; len(exits) > 0 {
			x = exits[0] // the latest
		}
		return x.GetIncarnation() >= d.incarnation
	})
	require.Equal(c.t, d.incarnation, x.Incarnation, "%s: %s", what, d.name)
	require.Empty(c.t, x.GetUnknownReason(), "%s: %s", what, d.name)
	require.Equal(c.t, d.fate, fate{int(x.GetExitCode()), syscall.Signal(x.GetSignal())}, "%s: %s: %v", what, d.name, x)
	c.ends++
}

// allLines stops the talkers and holds that every line that they wrote is there,
// once and in its order. It tells how many there were.
func (c *crowd) allLines() (all int) {
	c.t.Helper()
	for _, name := range c.talkers {
		byGRPC{c.world}.stop(name)
		lines := strings.Split(strings.TrimSuffix(c.mustCLI("--timeout", patience.String(), "logs", name, "-n", "1000000"), "\n"), "\n")
		for i, line := range lines[:len(lines)-1] {
			if want := fmt.Sprintf("%0199d", i+1); line != want {
				require.Equal(c.t, want, line, "of %d lines of %s", len(lines), name)
			}
		}
		require.Equal(c.t, fmt.Sprintf("%d lines", len(lines)-1), lines[len(lines)-1], name)
		all += len(lines)
	}
	return all
}

// acknowledged is what callers were told of one service, in its order.
type acknowledged []auditor.Ack

// traffic starts and stops a service some times, or until the agent is gone. It adds
// what the agent acknowledges to what it has before; an answer that was lost leaves
// nothing of that, for then nobody knows what holds.
func (w *world) traffic(ctx context.Context, name string, acked acknowledged) acknowledged {
	ask := map[auditor.Deed]func() (*gladsheimv1.ServiceStatus, error){
		auditor.Started: func() (*gladsheimv1.ServiceStatus, error) {
			return w.services().StartService(ctx, &gladsheimv1.StartServiceRequest{ServiceName: name})
		},
		auditor.Stopped: func() (*gladsheimv1.ServiceStatus, error) {
			return w.services().StopService(ctx, &gladsheimv1.StopServiceRequest{ServiceName: name})
		},
	}
	for state := w.conn.GetState(); state != connectivity.Ready; state = w.conn.GetState() {
		w.conn.Connect()
		if !w.conn.WaitForStateChange(ctx, state) {
			return acked // nothing was asked
		}
	}
	deed := auditor.Started
	for range rand.IntN(10) {
		s, err := ask[deed]()
		switch status.Code(err) {
		case codes.OK:
			acked = append(acked, auditor.Ack{Service: name, Deed: deed, Incarnation: s.GetIncarnation()})
		case codes.AlreadyExists, codes.FailedPrecondition: // it is so already
		default:
			return nil
		}
		if deed == auditor.Started {
			deed = auditor.Stopped
		} else {
			deed = auditor.Started
		}
	}
	return acked
}
