package skirnir

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func status(name string, s service.State) service.Status {
	return service.Status{Name: service.MustName(name), Machine: service.Machine{State: s}}
}

func TestListIsSortedAndFiltered(t *testing.T) {
	r := NewRegistry(0)
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
	r := NewRegistry(0)
	r.Add(status("web", service.Stopped))
	web := service.MustName("web")
	before, _ := r.Get(web)
	after := r.Update(web, News{}, func(s *service.Status) { s.Machine.State = service.Running })
	require.Equal(t, service.Stopped, before.Machine.State)
	require.Equal(t, service.Running, after.Machine.State)
	require.Nil(t, r.Update(service.MustName("nobody"), News{}, func(*service.Status) { t.Fatal("called") }))
}

func TestWatchTellsSnapshotThenEveryChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(0)
		r.Add(status("web", service.Stopped))
		web := service.MustName("web")
		ctx, cancel := context.WithCancel(t.Context())
		snapshot, news := r.Watch(ctx, 0)
		require.Len(t, snapshot, 1)
		for i := range 5 {
			r.Update(web, News{Detail: fmt.Sprint(i)}, func(*service.Status) {})
		}
		for i := range 5 {
			n := <-news
			require.EqualValues(t, i+1, n.Sequence)
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

func TestWatchResumesOrFallsBackToASnapshot(t *testing.T) {
	r := NewRegistry(0)
	r.Add(status("web", service.Stopped))
	web := service.MustName("web")
	for range 10 {
		r.Update(web, News{}, func(*service.Status) {})
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	snapshot, news := r.Watch(ctx, 7)
	require.Nil(t, snapshot)
	require.EqualValues(t, 8, (<-news).Sequence)
	snapshot, _ = r.Watch(ctx, 999)
	require.NotNil(t, snapshot, "a number of the future is of another agent")
	for range 3 * keptNotices {
		r.Update(web, News{}, func(*service.Status) {})
	}
	snapshot, _ = r.Watch(ctx, 7)
	require.NotNil(t, snapshot, "too old to be kept")
	require.LessOrEqual(t, len(r.kept), 2*keptNotices)
}

func TestSlowSubscriberFindsAHole(t *testing.T) {
	r := NewRegistry(0)
	r.Add(status("web", service.Stopped))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, news := r.Watch(ctx, 0)
	for range queueNotices + 10 {
		r.Update(service.MustName("web"), News{}, func(*service.Status) {})
	}
	for range queueNotices {
		<-news
	}
	r.Update(service.MustName("web"), News{}, func(*service.Status) {})
	require.EqualValues(t, queueNotices+11, (<-news).Sequence)
}

func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(0)
		r.Add(status("web", service.Stopped))
		for range 4 {
			r.Update(service.MustName("web"), News{}, func(*service.Status) {})
			time.Sleep(time.Second)
		}
		require.Len(t, r.Recent(0, time.Time{}), 4)
		require.Len(t, r.Recent(3, time.Time{}), 3)
		require.Len(t, r.Recent(0, time.Now().Add(-2*time.Second)), 2)
		require.EqualValues(t, 4, r.Sequence())
	})
}

func TestKeptSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, began := NewRegistry(0), time.Now()
		r.Add(status("web", service.Stopped))
		for range 2 * keptNotices {
			time.Sleep(time.Second)
			r.Update(service.MustName("web"), News{}, func(*service.Status) {})
		}
		require.Equal(t, began, r.KeptSince(), "all are kept")
		r.Update(service.MustName("web"), News{}, func(*service.Status) {})
		oldest := r.Recent(0, time.Time{})[0]
		require.True(t, r.KeptSince().Before(oldest.Time))
		require.True(t, r.KeptSince().After(oldest.Time.Add(-time.Second)), "the one before is gone")
	})
}

func TestReadersAndWritersDoNotRace(t *testing.T) {
	r := NewRegistry(0)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 4 {
		name := fmt.Sprintf("s%d", i)
		r.Add(status(name, service.Stopped))
		_, news := r.Watch(ctx, 0) // before the first notice, so that there are enough
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
