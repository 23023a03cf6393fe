package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
)

// alert is the reason of the event that wants a person: a service is given up.
const alert = "alert"

// keeper is what thjalfi sees of skirnir.
type keeper struct{ *Agent }

func (k keeper) Publish(name service.Name, kind service.NoticeKind, reason, detail string, change func(*service.Status)) {
	var open service.Violations
	var hung service.Hang
	s := k.registry.Update(name, skirnir.News{Kind: kind, Reason: reason, Detail: detail}, func(s *service.Status) {
		open, hung = s.Violations, s.Hung
		if change(s); s.Violations == open {
			open = service.Violations{}
		}
		if s.Hung == hung {
			hung = service.Hang{}
		}
	})
	k.thjalfi.Changed(name)
	k.endViolations(name, open)
	if hung.Lasts() {
		k.endHang(name, hung)
	}
	if reason == alert {
		k.cfg.Log.Error("service is given up", "service", name, "detail", detail)
	}
	if s != nil && (s.Machine.State == service.Held || s.Machine.Spared) { // it may be on AC by now
		k.lookSoon()
	}
	if s != nil && !s.Spec.Schedule.IsZero() {
		k.scheduleSoon()
	}
}

func (k keeper) Show(name service.Name, change func(*service.Status)) {
	k.registry.Update(name, skirnir.News{Silent: true}, change)
	k.thjalfi.Changed(name)
}

// Record writes what is, and then, if it changed, what is wanted: that a service was
// begun in this boot is not on record before its launch is, whose record is missing
// ever after only if it was lost.
func (k keeper) Record(r thjalfi.Record) error {
	var err error
	if launched := !r.Spec.Name.IsZero(); !launched { // in this boot
		err = k.want(r.Name, func(w *skirnir.Wanted) { w.Paused = r.Machine.Paused })
	} else if err = k.store.SaveActual(actual(r, k.bootID)); err == nil {
		err = k.wish(r.Name, r.Rehearsal, func(w *skirnir.Wanted) {
			was := *w
			w.Up, w.Paused, w.Options = r.Machine.Up, r.Machine.Paused, r.Options
			if r.Machine.State.Alive() {
				w.Begun = k.bootID
			}
			if !same(was, *w) {
				w.Latest = latest(r, w)
			}
		})
	}
	var late error
	if err == nil {
		late = errors.Join(k.noteLatest(r), k.saveLateExits(r.Name), k.saveLateOutputs(r.Name))
	}
	k.written(r.Name, errors.Join(err, late))
	if err != nil {
		return &service.Error{Op: "record", Service: r.Name, Kind: service.HostUnavailable, Err: err}
	}
	return nil
}

func latest(r thjalfi.Record, w *skirnir.Wanted) uint64 {
	if r.Machine.State.Alive() {
		return r.Machine.Incarnation
	}
	return w.Latest
}

// noteLatest writes which incarnation was last begun. No launch fails for want of that:
// it is of use only should the run directory be lost, too, or the host go down.
func (k keeper) noteLatest(r thjalfi.Record) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	_, torn := k.torn[r.Name]
	err := k.rewrite(r.Name, false, func(w *skirnir.Wanted) { w.Latest = latest(r, w) })
	if !torn { // whichever number the disk holds
		delete(k.torn, r.Name)
	}
	return err
}

// saveLateExits writes exit records that could not be written when they were made.
func (k keeper) saveLateExits(name service.Name) error {
	k.mu.Lock()
	exits, late := k.exits[name], k.unburied[name]
	k.mu.Unlock()
	if !late {
		return nil
	}
	return k.saveExits(name, k.withLines(name, exits))
}

func (k keeper) saveExits(name service.Name, exits []service.ExitRecord) error {
	err := k.store.SaveExits(name, exits)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unburied[name] = err != nil; err == nil {
		delete(k.unburied, name)
	}
	return err
}

// written keeps for the doctor, and logs, that a record can not be written, or can
// again.
func (a *Agent) written(name service.Name, err error) {
	a.mu.Lock()
	before := a.unwritten[name]
	if err == nil {
		delete(a.unwritten, name)
	} else {
		a.unwritten[name] = err
	}
	a.mu.Unlock()
	switch {
	case err != nil && before == nil:
		a.cfg.Log.Error("the record of a service can not be written", "service", name, "error", err)
	case err == nil && before != nil:
		a.cfg.Log.Info("the record of a service can be written again", "service", name)
	}
}

// writeAgain tries what could not be written, so that the doctor tells how it is now,
// and there is a record as soon as somebody who made room looks.
func (a *Agent) writeAgain(ctx context.Context) {
	const patience = 2 * time.Second // a launch may be under way
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a.mu.Lock()
	names := slices.Collect(maps.Keys(a.unwritten))
	a.mu.Unlock()
	a.recordAll(ctx, names)
}

// unwritable tells the doctor which directories can not be written. The caller holds mu.
func (a *Agent) unwritable() (findings []service.Finding) {
	services := map[string][]service.Name{}
	for name, err := range a.unwritten {
		dir := a.cfg.StateDir + " or " + a.cfg.RunDir
		if at, ok := errors.AsType[*fs.PathError](err); ok {
			dir = filepath.Dir(at.Path)
		} else if at, ok := errors.AsType[*os.LinkError](err); ok {
			dir = filepath.Dir(at.New)
		}
		services[dir] = append(services[dir], name)
	}
	for _, dir := range slices.Sorted(maps.Keys(services)) {
		names := services[dir]
		slices.SortFunc(names, byName)
		findings = append(findings, service.Finding{
			Level: service.SeverityProblem, Title: "records can not be written in " + dir,
			Detail: fmt.Sprintf("This is so for %v. No service is begun or restarted by a record that is not written: %v.", names, a.unwritten[names[0]]),
			Fix:    "Make room, or have the directory writable; what waits is tried again by itself.",
		})
	}
	return findings
}

func actual(r thjalfi.Record, bootID string) skirnir.Actual {
	return skirnir.Actual{
		Name: r.Name, Machine: r.Machine, Ref: r.Ref, Spec: r.Spec, Limits: r.Limits, Started: r.Started, LogFrom: r.LogFrom, Stream: r.Stream,
		Exit: r.Exit, Remains: r.Remains, Ended: r.Ended, Due: r.Due, Failed: r.Failed, Actor: r.Actor, Paused: r.Paused, Asked: r.Asked,
		BootID: bootID,
	}
}

// want changes what is wanted of a service, and writes it if it did change.
// Writers take turns, across the write, so that none undoes another's; readers
// do not wait for them.
func (a *Agent) want(name service.Name, change func(*skirnir.Wanted)) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	return a.rewrite(name, false, change)
}

// wish is want for what a launch or its end changes: whether and how the service is to
// run. If it does not change that, no write is needed for the sake of another change
// that failed. Told to, it writes what did not change as well; then it does no harm if
// the disk holds it although the write failed.
func (a *Agent) wish(name service.Name, anyway bool, change func(*skirnir.Wanted)) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	wish, torn := a.torn[name]
	if torn && !wish && !anyway {
		a.mu.Lock()
		before := a.wanted[name]
		a.mu.Unlock()
		after := before
		after.Name = name
		if change(&after); same(before, after) {
			return nil // noteLatest tries
		}
	}
	err := a.rewrite(name, anyway, change)
	if anyway && !torn {
		delete(a.torn, name)
	}
	return err
}

// wantOf is want for a service that may be forgotten meanwhile; then nothing is
// written.
func (a *Agent) wantOf(op string, name service.Name, change func(*definition, *skirnir.Wanted)) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.mu.Lock()
	d, err := a.find(op, name)
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if err := a.rewrite(name, false, func(w *skirnir.Wanted) { change(d, w) }); err != nil {
		return &service.Error{Op: op, Service: name, Kind: service.HostUnavailable, Err: err}
	}
	return nil
}

// rewrite is want for who holds writing.
func (a *Agent) rewrite(name service.Name, anyway bool, change func(*skirnir.Wanted)) error {
	a.mu.Lock()
	before := a.wanted[name]
	a.mu.Unlock()
	after := before
	after.Name = name
	change(&after)
	wish, torn := a.torn[name]
	if same(before, after) && !torn && !anyway {
		return nil
	}
	a.torn[name] = wish || before.Name.IsZero() || before.Up != after.Up || before.Paused != after.Paused || before.Begun != after.Begun || !reflect.DeepEqual(before.Options, after.Options)
	if err := a.store.SaveWanted(after); err != nil {
		return err
	}
	delete(a.torn, name)
	a.mu.Lock()
	a.wanted[name] = after
	a.mu.Unlock()
	return nil
}

func same(a, b skirnir.Wanted) bool {
	return a.Name == b.Name && bytes.Equal(a.Document, b.Document) && a.Generation == b.Generation &&
		a.Changed.Equal(b.Changed) && a.Up == b.Up && a.Paused == b.Paused && a.Limits == b.Limits && a.Warnings == b.Warnings && a.Over == b.Over &&
		a.Begun == b.Begun && a.Latest == b.Latest && a.Timing == b.Timing && reflect.DeepEqual(a.Options, b.Options)
}

func (k keeper) Bury(name service.Name, x service.ExitRecord) (service.ExitRecord, error) {
	k.mu.Lock()
	exits := k.exits[name]
	k.mu.Unlock()
	if last := len(exits) - 1; last >= 0 && exits[last].Incarnation == x.Incarnation { // by an agent that got no further
		return exits[last], nil
	}
	x.BootID = cmp.Or(x.BootID, k.bootID)
	x.Seen, x.FirstSeen = 1, x.Ended
	for _, like := range exits { // oldest first
		if x.Fingerprint != "" && like.Fingerprint == x.Fingerprint {
			x.Seen, x.FirstSeen = like.Seen+1, like.FirstSeen
		}
	}
	exits = append(k.withLines(name, exits), x)
	exits = exits[max(0, len(exits)-skirnir.KeptExits):]
	k.mu.Lock()
	k.exits[name] = brief(exits)
	k.mu.Unlock()
	k.cfg.Log.Info("service ended", "service", name, "incarnation", x.Incarnation, "verdict", x.Verdict, "detail", x.Message)
	return x, k.saveExits(name, exits)
}

// brief is exit records as they are kept in memory: with the last lines of the
// latest alone.
func brief(exits []service.ExitRecord) []service.ExitRecord {
	out := slices.Clone(exits)
	for i := range len(out) - 1 {
		out[i].LastLines = nil
	}
	return out
}

// withLines is exit records with their last lines, as far as those can be read.
func (a *Agent) withLines(name service.Name, exits []service.ExitRecord) []service.ExitRecord {
	kept, err := a.store.Exits(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.cfg.Log.Warn("cannot read the last lines of former incarnations", "service", name, "error", err)
	}
	out := slices.Clone(exits)
	for i := range len(out) - 1 {
		at := slices.IndexFunc(kept, func(x service.ExitRecord) bool { return x.Incarnation == out[i].Incarnation })
		if at >= 0 {
			out[i].LastLines = kept[at].LastLines
		}
	}
	return out
}

// keepHealth takes every verdict of roskva, and tells subscribers of changes.
func (a *Agent) keepHealth(name service.Name, h service.Health) {
	a.registry.Revise(name, func(s *service.Status) skirnir.News { return newHealth(s, h) })
	a.thjalfi.Changed(name)
}

// keepLook is keepHealth for a look at one incarnation, which may have begun to
// end meanwhile: then that it is not checked any more has been kept already.
func (a *Agent) keepLook(name service.Name, incarnation uint64, h service.Health) {
	a.registry.Revise(name, func(s *service.Status) skirnir.News {
		if s.Machine.State != service.Running || s.Machine.Incarnation != incarnation || s.Machine.Frozen {
			return skirnir.News{Silent: true}
		}
		return newHealth(s, h)
	})
}

// well is for how long a service has been healthy by now.
func (a *Agent) well(name service.Name) time.Duration {
	s, known := a.registry.Get(name)
	if !known || s.Well.IsZero() {
		return 0
	}
	return time.Since(s.Well)
}

func newHealth(s *service.Status, h service.Health) skirnir.News {
	news := skirnir.News{Kind: service.NoticeHealth, Reason: h.Status.String(), Detail: h.Message}
	// That a service which ended is not checked any more is no news.
	news.Silent = s.Health.Status == h.Status || h.Status == service.HealthUnknown
	switch {
	case h.Status != service.Healthy:
		s.Well = time.Time{}
	case s.Well.IsZero():
		s.Well = time.Now()
	}
	s.Health = h
	return news
}
