package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/fake"
)

const remembered = `"usage_history": true`

// sawtooth has services hold up to 100 MiB, a minute long.
func (h *house) sawtooth() *atomic.Int64 {
	reads := &atomic.Int64{}
	script := fake.Script{Usage: func(age time.Duration) service.Usage {
		reads.Add(1)
		part := age % time.Minute
		return service.Usage{Source: "cgroup", Memory: 1<<20 + uint64(part)*(99<<20)/uint64(time.Minute), CPUTime: age / 4, Pids: service.Of(3)}
	}}
	h.host.Script(web, script)
	h.host.Script(db, script)
	return reads
}

func (h *house) used(name service.Name) []service.Sample {
	h.t.Helper()
	samples, err := h.UsageHistory(name, time.Time{}, 0, 0)
	require.NoError(h.t, err)
	return samples
}

// What a service used is known to the next agent, and goes with the boot, with the wish
// to remember it, and with the service.
func TestHistoryOutlivesTheAgent(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.sawtooth()
		h.open()
		h.register(web, remembered)
		h.register(db)
		h.start(web)
		h.start(db)
		pass(2*time.Minute + time.Second/2)
		before := h.used(web)
		require.InDelta(t, 120, len(before), 2)
		last := before[len(before)-1]
		require.InDelta(t, 25, last.CPU.Percent, 0.5)
		require.Equal(t, service.Of(3), last.PidsPeak)
		require.WithinDuration(t, time.Now(), last.Ended(), 2*time.Second)
		_, err := h.UsageHistory(db, time.Time{}, 0, 0)
		refused(t, err, service.Conflict, "not remembered")
		require.Equal(t, service.ReasonNoHistory, service.ReasonOf(err))
		require.NoFileExists(t, h.path("run/usage/db.ring"))

		h.reopen()
		require.Equal(t, before[:len(before)-1], h.used(web)[:len(before)-1])
		pass(time.Minute)
		require.InDelta(t, 180, len(h.used(web)), 4)
		few, err := h.UsageHistory(web, time.Now().Add(-time.Hour), 0, 10)
		require.NoError(t, err)
		require.InDelta(t, 9, len(few), 1)

		change := h.register(web) // it does not ask any more
		require.Equal(t, service.ReachLive, change.Effect)
		require.NoFileExists(t, h.path("run/usage/web.ring"))
		pass(time.Minute)
		require.NoFileExists(t, h.path("run/usage/web.ring"))
		require.Equal(t, service.ReachLive, h.register(web, remembered).Effect)
		pass(time.Minute + time.Second/2)
		require.InDelta(t, 60, len(h.used(web)), 2)
		require.EqualValues(t, 1, h.status(web).Machine.Incarnation, "it was not restarted")

		h.reboot()
		h.open()
		pass(10 * time.Second)
		require.LessOrEqual(t, len(h.used(web)), 11)
		h.stop(web)
		require.NoError(t, h.Unregister(t.Context(), web, "alice"))
		require.NoFileExists(t, h.path("run/usage/web.ring"))
		require.Empty(t, h.doctor())
	})
}

// What went away while no agent was there leaves no history.
func TestHistoriesOfTheVanished(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.define(web, remembered)
		h.define(db, remembered)
		h.reload()
		h.start(web)
		h.start(db)
		pass(5 * time.Second)
		h.stop(web)
		h.close()
		h.remove("services.d/web.json")
		h.define(db)
		h.write("run/usage/.half.ring", "")
		h.open()
		left, err := os.ReadDir(h.path("run/usage"))
		require.NoError(t, err)
		require.Empty(t, left)
	})
}

// A file that is not as it was left is set aside, and nothing is taken from it.
func TestADamagedHistoryIsSetAside(t *testing.T) {
	for what, damage := range map[string]func(content []byte) []byte{
		"a cell":    func(b []byte) []byte { b[4096+128*(len(b)/256)] ^= 1; b[len(b)-1] ^= 1; return b },
		"the head":  func(b []byte) []byte { b[20] ^= 1; return b },
		"the end":   func(b []byte) []byte { return b[:len(b)-1] },
		"all of it": func([]byte) []byte { return nil },
		"a name":    func(b []byte) []byte { return []byte(strings.Replace(string(b), `"web"`, `"wxb"`, 1)) },
	} {
		opened(t, func(t *testing.T, h *house) {
			h.register(web, remembered)
			h.start(web)
			pass(time.Minute)
			h.close()
			file := h.path("run/usage/web.ring")
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file, damage(content), 0o600))
			h.open()
			require.LessOrEqual(t, len(h.used(web)), 2, what)
			aside, err := filepath.Glob(file + ".corrupt-*")
			require.NoError(t, err)
			require.Len(t, aside, 1, what)
			require.Contains(t, h.log.String(), "is forgotten")
			pass(time.Minute)
			require.InDelta(t, 60, len(h.used(web)), 3, what)
		})
	}
}

// Without room for a file a service is remembered until the agent ends.
func TestHistoryWithoutRoom(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.write("run/usage", "in the way")
		h.register(web, remembered)
		h.start(web)
		pass(time.Minute)
		require.InDelta(t, 60, len(h.used(web)), 2)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "what web uses is forgotten when the agent ends")
		h.register(web)
		require.Empty(t, h.doctor())
	})
}

// A run directory that somebody removes takes no history along.
func TestHistoryOutlivesItsDirectory(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, remembered)
		h.start(web)
		pass(time.Minute)
		h.lose("run")
		h.crash(web) // something is written
		pass(time.Minute)
		require.InDelta(t, 120, len(h.used(web)), 5)
		h.reopen()
		require.InDelta(t, 120, len(h.used(web)), 5)
	})
}

// Who looks on is told of what nobody remembers, at once and then in time; without him
// nothing is read.
func TestWatchUsage(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		reads := h.sawtooth()
		h.open()
		h.register(web)
		h.register(db)
		h.start(web)
		h.start(db)
		pass(time.Hour)
		reads.Store(0)
		pass(time.Hour)
		idle := reads.Load() // gauges of the two
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		shown := h.WatchUsage(ctx, 2*time.Second, web)
		synctest.Wait()
		first := <-shown
		require.Equal(t, web, first.Service)
		require.True(t, first.Memory.Set)
		require.False(t, first.CPU.Set, "nobody knows yet")
		began := time.Now()
		for range 10 {
			u := <-shown
			require.Equal(t, web, u.Service)
			require.InDelta(t, 25, u.CPU.Percent, 0.5)
		}
		require.InDelta(t, 20, time.Since(began).Seconds(), 1)
		all := h.WatchUsage(ctx, time.Second)
		synctest.Wait()
		seen := map[service.Name]bool{} // one that was looked at just now comes with its next look
		for range 3 {
			seen[(<-all).Service] = true
		}
		require.Equal(t, map[service.Name]bool{web: true, db: true}, seen)
		_, err := h.UsageHistory(web, time.Now().Add(-time.Hour), 0, 0)
		refused(t, err, service.Conflict)
		pass(time.Hour) // nobody takes them: they are not piled up
		cancel()
		synctest.Wait()
		for range all {
		}
		reads.Store(0)
		pass(time.Hour)
		require.LessOrEqual(t, reads.Load(), idle+2)
		require.NoDirExists(t, h.path("run/usage"))
	})
}

// What is recommended fits what a service does, and is refused while too little is known.
func TestRecommend(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.sawtooth()
		h.open()
		h.register(web, remembered, `"limits": {"cpu_percent": 50}`)
		h.register(db)
		h.start(web)
		_, err := h.Recommend(t.Context(), db, time.Time{})
		refused(t, err, service.Conflict, "cannot recommend limits for db", "not remembered")
		pass(30 * time.Second)
		_, err = h.Recommend(t.Context(), web, time.Time{})
		refused(t, err, service.Conflict, "no advice before 1m0s")
		require.Equal(t, service.ReasonNoHistory, service.ReasonOf(err))
		pass(30 * time.Minute)
		a, err := h.Recommend(t.Context(), web, time.Time{})
		require.NoError(t, err)
		require.Equal(t, service.ConfidenceLow, a.Confidence)
		advised := map[service.Resource]service.LimitAdvice{}
		for _, l := range a.Limits {
			advised[l.Resource] = l
		}
		require.InEpsilon(t, 100<<20, advised[service.MemoryMax].Advised.Value, 0.1)
		require.Equal(t, service.Of(28*service.UsecPerPercent), advised[service.CPUMax].Advised)
		require.Equal(t, service.Of(50*service.UsecPerPercent), advised[service.CPUMax].Now)
		require.Equal(t, service.Of(19), advised[service.PidsMax].Advised)
		h.stop(web)
		_, err = h.Recommend(t.Context(), web, time.Time{})
		require.NoError(t, err, "of what has ended it is known, too")
		pass(10 * time.Minute)
		_, err = h.Recommend(t.Context(), web, time.Now().Add(-5*time.Minute))
		refused(t, err, service.Conflict, "looked at for 0s")
	})
}

// Nothing stays open of an agent that has left.
func TestHistoriesAreClosed(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		before := openFiles(t, h.dir)
		for range 3 {
			h.open()
			for _, name := range []service.Name{web, db} {
				h.register(name, remembered)
				if !h.status(name).Machine.State.Alive() {
					h.start(name)
				}
			}
			pass(10 * time.Second)
			require.Contains(t, strings.Join(openFiles(t, h.dir), " "), "usage/web.ring")
			h.close()
			require.Equal(t, before, openFiles(t, h.dir))
		}
	})
}

// openFiles are the files below dir that this process has open.
func openFiles(t *testing.T, dir string) (open []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, dir) {
			open = append(open, to)
		}
	}
	return open
}

// That the kernel has killed a service for want of memory is in what is recommended.
func TestRecommendAfterAKill(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		var killed atomic.Bool
		h.host.Script(web, fake.Script{Usage: func(time.Duration) service.Usage {
			u := service.Usage{Source: "cgroup", Memory: 50 << 20, MemoryPeak: service.Of(50 << 20), OOMKills: service.Of(0)}
			if killed.Load() {
				u.Memory, u.MemoryPeak, u.OOMKills = 0, service.Of(200<<20), service.Of(1)
			}
			return u
		}})
		h.open()
		h.register(web, remembered, `"restart": {"policy": "never"}, "limits": {"memory_max": "200MiB"}`)
		h.start(web)
		pass(2*time.Minute + 300*time.Millisecond)
		killed.Store(true)
		h.host.OOMKill(web, service.OOMOwn, "")
		settle()
		advice, err := h.Recommend(t.Context(), web, time.Time{})
		require.NoError(t, err)
		require.Equal(t, service.Of(1), advice.Evidence.OOMKills)
		require.Contains(t, advice.Doubt, "it was short of memory")
		require.Equal(t, service.MemoryMax, advice.Limits[0].Resource)
		require.Equal(t, service.Of(300<<20), advice.Limits[0].Advised)
	})
}

// What is in swap is memory that it needs, and that nobody remembers.
func TestRecommendWithSwap(t *testing.T) {
	inside(t, func(t *testing.T, h *house) {
		h.host.Script(web, fake.Script{Usage: func(time.Duration) service.Usage {
			return service.Usage{Source: "cgroup", Memory: 50 << 20, MemoryPeak: service.Of(50 << 20), Swap: service.Of(300 << 20)}
		}})
		h.open()
		h.register(web, remembered)
		h.start(web)
		pass(24 * time.Hour)
		advice, err := h.Recommend(t.Context(), web, time.Time{})
		require.NoError(t, err)
		require.Equal(t, service.ConfidenceLow, advice.Confidence)
		require.Equal(t, "it has 300MiB in swap, which is not in what it held", advice.Doubt)
	})
}

// The doctor does not complain of a history that has a file again.
func TestAHistoryGetsItsFileBack(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.write("run/usage", "in the way")
		h.register(web, remembered)
		h.start(web)
		pass(time.Minute)
		require.Contains(t, h.doctor()[0], "what web uses is forgotten when the agent ends")
		h.lose("run")
		h.crash(web) // something is written
		pass(time.Minute)
		require.FileExists(t, h.path("run/usage/web.ring"))
		require.Empty(t, h.doctor())
		require.InDelta(t, 120, len(h.used(web)), 5)
	})
}
