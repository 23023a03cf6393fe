package power

import (
	"context"
	"log/slog"
	"sync"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Source tells how the host is powered, and when that may have changed. Its methods
// may be called by many goroutines at once.
type Source struct {
	root   string
	news   chan struct{}
	from   *uevents // nil where they can not be heard
	upower *upower
	leave  context.CancelFunc
	wg     sync.WaitGroup
}

// Open begins to listen for news of the power supplies below root, which is /sys but
// in tests, and of UPower on the system bus. Where the kernel's uevents can not be
// heard, which is logged, there are no news of the former, and Read tells all the same.
// Close ends it.
func Open(root string, log *slog.Logger) *Source { return open(root, systemBus, log) }

func open(root, bus string, log *slog.Logger) *Source {
	s := &Source{root: root, news: make(chan struct{}, 1)}
	ctx, leave := context.WithCancel(context.Background())
	s.leave, s.upower = leave, &upower{address: bus, told: s.tell, again: make(chan struct{}, 1)}
	s.wg.Go(func() { s.upower.follow(ctx) })
	from, err := hear()
	if err != nil {
		log.Warn("changes of the power supply are noticed late", "error", err)
		return s
	}
	s.from = from
	s.wg.Go(func() { from.tell(s.changed, log) })
	return s
}

// changed takes that the kernel tells of a change: UPower is asked as well, which may have
// got stuck, and say no more.
func (s *Source) changed() {
	s.upower.ask()
	s.tell()
}

// tell leaves one piece of news, however many there are.
func (s *Source) tell() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// News has a value when something may have changed since it was last taken out.
func (s *Source) News() <-chan struct{} { return s.news }

// Read tells how the host is powered: what UPower says while it is on the bus and knows
// of a battery, else what Sysfs reads.
func (s *Source) Read() (service.Power, error) {
	if now := s.upower.read(); now != nil {
		return *now, nil
	}
	return Sysfs(s.root)
}

// Close ends the news.
func (s *Source) Close() {
	s.leave()
	if s.from != nil {
		s.from.close()
	}
	s.wg.Wait()
}
