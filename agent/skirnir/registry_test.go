package skirnir

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SKIRNIR_BE_KILLED"); dir != "" {
		beKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

// fresh is a registry that no agent had before, in memory.
func fresh() *Registry { return newRegistry(newRing("a boot", 0)) }

func status(name string, s service.State) service.Status {
	return service.Status{Name: service.MustName(name), Machine: service.Machine{State: s}}
}

func TestListIsSortedAndFiltered(t *testing.T) {
	r := fresh()
	r.Add(status("web", service.Running), status("db", service.Stopped), status("api", service.Crashed))
	r.Add(status("web", service.Stopped)) // known: keeps its status
	require.Len(t, r.List(), 3)
	require.Equal(t, []string{"api", "db", "web"}, names(r.List()))
	require.Equal(t, []string{"db"}, names(r.List(service.PublicStopped)))
	counts := r.Statistics()
	require.Equal(t, 1, counts[service.PublicRunning])
	require.Equal(t, 1, counts[service.PublicCrashed])
	r.Remove(service.MustName("db"), News{Kind: service.NoticeUnregistered})
	_, known := r.Get(service.MustName("db"))
	require.False(t, known)
	require.Equal(t, []string{"api", "web"}, names(r.List()))
}

func names(list []*service.Status) []string {
	var out []string
	for _, s := range list {
		out = append(out, s.Name.String())
	}
	return out
}

func TestSnapshotsDoNotChange(t *testing.T) {
	r := fresh()
	r.Add(status("web", service.Stopped))
	web := service.MustName("web")
	before, _ := r.Get(web)
	after := r.Update(web, News{}, func(s *service.Status) { s.Machine.State = service.Running })
	require.Equal(t, service.Stopped, before.Machine.State)
	require.Equal(t, service.Running, after.Machine.State)
	require.Nil(t, r.Update(service.MustName("nobody"), News{}, func(*service.Status) { t.Fatal("called") }))
}

func TestWatchTellsEveryChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fresh()
		r.Add(status("web", service.Stopped))
		web := service.MustName("web")
		r.Update(web, News{}, func(*service.Status) {})
		ctx, cancel := context.WithCancel(t.Context())
		after, news := r.Watch(ctx)
		require.EqualValues(t, 1, after)
		for i := range 5 {
			r.Update(web, News{Detail: fmt.Sprint(i)}, func(*service.Status) {})
		}
		for i := range 5 {
			n := <-news
			require.EqualValues(t, i+2, n.Sequence)
			require.Equal(t, fmt.Sprint(i), n.Detail)
		}
		r.Update(web, News{Silent: true}, func(*service.Status) {})
		require.Empty(t, news)
		cancel()
		synctest.Wait()
		_, open := <-news
		require.False(t, open)
		r.Update(web, News{}, func(*service.Status) {}) // nobody listens: must not panic
	})
}

func TestKeptIsWholeFromASequenceOn(t *testing.T) {
	r := fresh()
	r.Add(status("web", service.Stopped))
	web := service.MustName("web")
	for range 10 {
		r.Update(web, News{}, func(*service.Status) {})
	}
	require.Len(t, r.Kept(7), 3)
	require.EqualValues(t, 8, r.Kept(7)[0].Sequence)
	require.Empty(t, r.Kept(10))
	require.Empty(t, r.Kept(999))
	for range areaSize / unit { // more than there can be
		r.Update(web, News{Detail: "a longer text, so that each takes several units of the area"}, func(*service.Status) {})
	}
	kept := r.Kept(0)
	require.Greater(t, kept[0].Sequence, uint64(10), "the oldest made room")
	require.Greater(t, len(kept), 10_000)
	for i, n := range kept {
		require.Equal(t, kept[0].Sequence+uint64(i), n.Sequence)
	}
	require.Equal(t, r.Sequence(), kept[len(kept)-1].Sequence)
}

func TestSlowSubscriberFindsAHole(t *testing.T) {
	r := fresh()
	r.Add(status("web", service.Stopped))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, news := r.Watch(ctx)
	for range queueNotices + 10 {
		r.Update(service.MustName("web"), News{}, func(*service.Status) {})
	}
	for range queueNotices {
		<-news
	}
	r.Update(service.MustName("web"), News{}, func(*service.Status) {})
	require.EqualValues(t, queueNotices+11, (<-news).Sequence)
}

func TestKeptSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, began := fresh(), time.Now()
		r.Add(status("web", service.Stopped))
		require.True(t, r.KeptSince().Equal(began))
		for kept := r.Kept(0); len(kept) == 0 || kept[0].Sequence == 1; kept = r.Kept(0) {
			require.True(t, r.KeptSince().Equal(began), "all are kept")
			for range 100 {
				time.Sleep(time.Second)
				r.Update(service.MustName("web"), News{Detail: strings.Repeat("x", 1000)}, func(*service.Status) {})
			}
		}
		oldest := r.Kept(0)[0]
		require.True(t, r.KeptSince().Before(oldest.Time))
		require.True(t, r.KeptSince().After(oldest.Time.Add(-time.Second)), "the one before is gone")
	})
}

func TestReadersAndWritersDoNotRace(t *testing.T) {
	r := fresh()
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 4 {
		name := fmt.Sprintf("s%d", i)
		r.Add(status(name, service.Stopped))
		_, news := r.Watch(ctx) // before the first notice, so that there are enough
		wg.Go(func() {
			for range 200 {
				r.Update(service.MustName(name), News{}, func(s *service.Status) { s.Machine.Restarts++ })
			}
		})
		wg.Go(func() {
			for range 50 {
				<-news
				r.List()
				r.Statistics()
			}
		})
	}
	wg.Wait()
	s, _ := r.Get(service.MustName("s2"))
	require.EqualValues(t, 200, s.Machine.Restarts)
}
