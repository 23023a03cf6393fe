package thjalfi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing/synctest"

	"github.com/gladsheim/gladsheim/agent/service"
)

// disk is a Keeper. What is recorded on it outlives agents.
type disk struct {
	mu      sync.Mutex
	records map[service.Name]Record
	exits   map[service.Name][]service.ExitRecord
	shown   map[service.Name]service.Status
	passed  map[service.Name]*[2][]service.State // shown to readers, written
	lost    []string                             // identities of what is alive that were on disk, and then no more
	notices []string                             // reasons
	details map[service.NoticeKind][]string
	fails   func(Record) error // nil for never
	buries  func() error       // nil for always well
	breathe func() error
	alive   func(service.Name) int // incarnations on the host
}

func newDisk() *disk {
	return &disk{
		records: map[service.Name]Record{}, exits: map[service.Name][]service.ExitRecord{},
		shown: map[service.Name]service.Status{}, passed: map[service.Name]*[2][]service.State{}, details: map[service.NoticeKind][]string{},
	}
}

func (d *disk) Publish(name service.Name, kind service.NoticeKind, reason, detail string, change func(*service.Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.shown[name]
	change(&s)
	d.shown[name] = s
	d.notices, d.details[kind] = append(d.notices, reason), append(d.details[kind], detail)
	if kind == service.NoticeState {
		d.pass(name, 0, s.Machine.State)
	}
}

func (d *disk) Show(name service.Name, change func(*service.Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.shown[name]
	change(&s)
	d.shown[name] = s
}

func (d *disk) Record(r Record) error {
	if err := d.breathe(); err != nil {
		return err
	}
	d.mu.Lock()
	fails := d.fails
	d.mu.Unlock()
	if fails != nil {
		if err := fails(r); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if was := d.records[r.Name].Ref; was.PID != 0 && r.Ref.Incarnation == was.Incarnation && d.alive(r.Name) > 0 {
		heir := was
		heir.PID, heir.StartTicks = r.Ref.PID, r.Ref.StartTicks // another process of it may have succeeded
		if r.Ref != heir || heir.PID == 0 {
			d.lost = append(d.lost, fmt.Sprintf("%+v became %+v", was, r.Ref))
		}
	}
	d.records[r.Name] = r
	d.pass(r.Name, 1, r.Machine.State)
	return nil
}

// pass notes that a state was passed; the caller holds mu.
func (d *disk) pass(name service.Name, where int, state service.State) {
	both := d.passed[name]
	if both == nil {
		both = new([2][]service.State)
		d.passed[name] = both
	}
	if list := both[where]; len(list) == 0 || list[len(list)-1] != state {
		both[where] = append(list, state)
	}
}

func (d *disk) Bury(name service.Name, x service.ExitRecord) (service.ExitRecord, error) {
	if err := d.breathe(); err != nil {
		return x, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.buries != nil {
		if err := d.buries(); err != nil {
			return x, err
		}
	}
	if all := d.exits[name]; len(all) > 0 && all[len(all)-1].Incarnation == x.Incarnation {
		return all[len(all)-1], nil
	}
	d.exits[name] = append(d.exits[name], x)
	return x, nil
}

func (d *disk) get(name service.Name) (Record, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, recorded := d.records[name]
	return r, recorded
}

func (d *disk) exitsOf(name service.Name) []service.ExitRecord {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.exits[name])
}

func (d *disk) statusOf(name service.Name) service.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shown[name]
}

func (d *disk) states(name service.Name) (shown, written string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	both := d.passed[name]
	if both == nil {
		return "", ""
	}
	words := func(list []service.State) string { return strings.Trim(fmt.Sprint(list), "[]") }
	return words(both[0]), words(both[1])
}

// reopen is what a new agent shows before it has looked at its services.
func (d *disk) reopen() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.passed, d.notices = map[service.Name]*[2][]service.State{}, nil
	d.shown = map[service.Name]service.Status{}
	for name, r := range d.records {
		var s service.Status
		if !r.Machine.State.Alive() {
			s.Machine = r.Machine
		}
		if exits := d.exits[name]; len(exits) > 0 {
			s.LastExit = &exits[len(exits)-1]
		}
		d.shown[name] = s
	}
}

func (d *disk) failWith(f func(Record) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails = f
}

func (d *disk) buryWith(f func() error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.buries = f
}

func (d *disk) detailsOf(kind service.NoticeKind) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.details[kind])
}

func (d *disk) told() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.notices)
}

// prober says what it is told to say.
type prober struct {
	mu       sync.Mutex
	ready    chan struct{} // closed when services are ready
	attended map[int]func()
	excuse   func() error // of who was attended last
	count    int
	beats    int
	triggers int
}

func newProber() *prober { return &prober{ready: make(chan struct{}), attended: map[int]func(){}} }

func (p *prober) Await(ctx context.Context, _ service.Check, _ Exec) error {
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return errors.New("not ready")
	}
}

func (p *prober) Attend(_ service.Name, _ service.Check, _ Exec, excuse func() error, unhealthy func()) (leave func(why string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	p.excuse = excuse
	id := p.count
	p.attended[id] = unhealthy
	return func(string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.attended, id)
	}
}

func (p *prober) Beat(service.Name) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats++
}

func (p *prober) Trigger(service.Name) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.triggers++
}

// sicken reports that whatever is attended is unhealthy.
func (p *prober) sicken() {
	p.mu.Lock()
	all := slices.Collect(maps.Values(p.attended))
	p.mu.Unlock()
	for _, unhealthy := range all {
		unhealthy()
	}
	synctest.Wait()
}

// become has services become ready.
func (p *prober) become() {
	select {
	case <-p.ready:
	default:
		close(p.ready)
	}
}

func (p *prober) attending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.attended)
}
