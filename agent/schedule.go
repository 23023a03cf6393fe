package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/timetable"
)

// scheduler is who begins a run that was due.
const scheduler = "schedule"

// rewriteAfter is the wait before what could not be recorded of a schedule is tried again.
const rewriteAfter = 5 * time.Second

// schedules is what the agent needs to keep to them: one goroutine and one timer for all.
type schedules struct {
	look   chan struct{} // full when somebody wants them looked at anew
	tables map[service.Name]planned
}

// planned is a schedule as it was read.
type planned struct {
	text  string
	table timetable.Table
}

// attendSchedules begins what is due, until the agent leaves. It sleeps until then, or
// until there are news.
func (a *Agent) attendSchedules() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for a.ctx.Err() == nil {
		timer.Stop()
		if wait := a.lookAtSchedules(); wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-a.ctx.Done():
		case <-a.cfg.ClockSet:
		case <-a.schedules.look:
		case <-timer.C:
		}
	}
}

// scheduleSoon has the schedules looked at: one of them, or a service that has one, is not
// as it was.
func (a *Agent) scheduleSoon() {
	select {
	case a.schedules.look <- struct{}{}:
	default:
	}
}

// now is this moment.
func (a *Agent) now() timetable.Now {
	return timetable.Now{Wall: time.Now(), SinceBoot: a.cfg.SinceBoot(), Boot: a.bootID}
}

// lookAtSchedules begins what is due, and tells how long it is until something is; 0 for
// never.
func (a *Agent) lookAtSchedules() (wait time.Duration) {
	for _, s := range a.registry.List() {
		if s.Spec.Schedule.IsZero() {
			if s.Timing != (service.Timing{}) { // it had one
				delete(a.schedules.tables, s.Name)
				a.showTiming(s.Name, service.Timing{}, "")
			}
			continue
		}
		if next := a.lookAtSchedule(s); next > 0 && (wait == 0 || next < wait) {
			wait = next
		}
	}
	return wait
}

// lookAtSchedule begins a run if one is due, shows when the next is, and tells how long it is
// until then; 0 while the schedule rests.
func (a *Agent) lookAtSchedule(s *service.Status) time.Duration {
	table, err := a.tableOf(s)
	if err != nil {
		a.cfg.Log.Error("a schedule can not be read", "service", s.Name, "error", err)
		return 0
	}
	now, was := a.now(), a.wantedOf(s.Name).Timing
	t := was
	if t.Table != s.Spec.Schedule.Table() { // it is new: nothing of it is past
		t = skirnir.Timing{Table: s.Spec.Schedule.Table(), Mark: timetable.MarkOf(now), Ran: was.Ran}
	}
	t.Mark = table.Of(t.Mark, now)
	var tell string
	var begin bool
	switch next := table.Next(t.Mark, now); {
	case s.Machine.Paused:
		t.Mark, t.Queued = timetable.MarkOf(now), false
		if was.Table == t.Table && !was.Queued {
			t = was // it need not be written while it rests
		}
	case !next.After(now.Wall):
		begin, tell = a.due(s, table, &t, now, next)
	case t.Queued && !busy(s):
		begin, t.Queued, t.Ran = true, false, now.Wall.Round(0)
		if s.Spec.Schedule.Every > 0 { // which counts from where a run begins
			t.Mark = timetable.MarkOf(now)
		}
	}
	if t != was {
		if err := a.want(s.Name, func(w *skirnir.Wanted) { w.Timing = t }); err != nil {
			a.written(s.Name, err)
			return rewriteAfter // what can not be recorded is not begun
		}
	}
	shown := service.Timing{Last: t.Ran}
	if !s.Machine.Paused {
		shown.Next = table.Next(t.Mark, now)
	}
	a.showTiming(s.Name, shown, tell)
	if begin {
		replace := busy(s)
		a.background.Go(func() { a.runScheduled(s.Name, replace) })
	}
	if s.Machine.Paused {
		return 0
	}
	return max(shown.Next.Sub(now.Wall), 1)
}

// due decides on a run that was due at a time: whether it is to begin, and what there is to
// tell.
func (a *Agent) due(s *service.Status, table timetable.Table, t *skirnir.Timing, now timetable.Now, at time.Time) (begin bool, tell string) {
	schedule, mark := s.Spec.Schedule, t.Mark
	t.Mark = timetable.MarkOf(now)
	late := now.Wall.Sub(at) >= timetable.Grace
	when := "the run that was due at " + at.Format(time.RFC3339)
	switch {
	case late && schedule.Missed == service.MissedSkip:
		if t.Mark = table.Pass(mark, now); table.Again(at, t.Mark) {
			return false, when + " was missed, and so were those after it"
		}
		return false, when + " was missed"
	case a.saved(s.Name):
		return false, when + " is skipped, to save the battery"
	case !busy(s):
		t.Ran = now.Wall.Round(0)
		if late {
			tell = when + " was missed, and is made up for now"
		}
		return true, tell
	}
	if s.Machine.State == service.Waiting {
		return false, when + " is skipped: the one before waits for what it needs"
	}
	switch schedule.Overlap {
	case service.OverlapReplace:
		t.Ran = now.Wall.Round(0)
		return true, when + " replaces the one before, which goes on"
	case service.OverlapQueue:
		if t.Queued {
			return false, when + " is skipped: the one before goes on, and another waits already"
		}
		t.Queued = true
		return false, when + " waits until the one before has ended"
	}
	return false, when + " is skipped: the one before goes on"
}

// busy tells whether a run goes on, or is to be tried again by the restart policy.
func busy(s *service.Status) bool {
	return s.Machine.State.Alive() || s.Machine.State == service.Backoff || s.Machine.State == service.Held || s.Machine.State == service.Waiting
}

// tableOf is the schedule of a service as it was read.
func (a *Agent) tableOf(s *service.Status) (timetable.Table, error) {
	text := s.Spec.Schedule.Table()
	if p, known := a.schedules.tables[s.Name]; known && p.text == text {
		return p.table, nil
	}
	table, fault := timetable.Parse(s.Spec.Schedule)
	if fault != nil {
		return table, errors.New(fault.String())
	}
	a.schedules.tables[s.Name] = planned{text, table}
	return table, nil
}

// showTiming shows readers when a service is next due, and tells them what there is to tell.
func (a *Agent) showTiming(name service.Name, timing service.Timing, tell string) {
	a.registry.Revise(name, func(s *service.Status) skirnir.News {
		s.Timing = timing
		return skirnir.News{Kind: service.NoticeState, Reason: scheduler, Detail: tell, Silent: tell == ""}
	})
}

// runScheduled begins a run, and returns when it is over, or has come to nothing.
func (a *Agent) runScheduled(name service.Name, replace bool) {
	before, known := a.registry.Get(name)
	plan, err := a.launchPlan("start", name, service.StartOptions{Actor: scheduler})
	if err == nil {
		_, err = a.launch(a.ctx, "start", plan, func() error { return a.thjalfi.Run(a.ctx, name, plan, replace) })
	}
	after, still := a.registry.Get(name)
	if err == nil || a.ctx.Err() != nil || !known || !still || after.Machine.Incarnation > before.Machine.Incarnation {
		return // how a run ends tells its end
	}
	a.cfg.Log.Error("a run that was due could not be begun", "service", name, "error", err)
	a.registry.Update(name, skirnir.News{Kind: service.NoticeState, Reason: scheduler, Detail: "a run that was due could not be begun: " + err.Error()},
		func(s *service.Status) {
			if s.Machine.State == service.Stopped { // else its own failure tells
				s.Error = err.Error()
			}
		})
}

// begun notes that somebody begins a run, from which on the time to the next counts (every),
// and that a schedule which rests is taken up from here.
func (a *Agent) begun(name service.Name) error {
	s, known := a.registry.Get(name)
	if !known || s.Spec.Schedule.IsZero() || s.Spec.Schedule.Every == 0 && !s.Machine.Paused {
		return nil
	}
	return a.want(name, func(w *skirnir.Wanted) {
		if w.Timing.Table == s.Spec.Schedule.Table() {
			w.Timing.Mark = timetable.MarkOf(a.now())
		}
	})
}

// rest has a stop pause the schedule of a service, if it has one, and forgets the run that
// waits.
func (a *Agent) rest(ctx context.Context, name service.Name, opts service.StopOptions) error {
	s, known := a.registry.Get(name)
	opts.Pause = known && !s.Spec.Schedule.IsZero()
	if err := a.thjalfi.Stop(ctx, name, opts); err != nil {
		return err
	}
	if !opts.Pause || !a.wantedOf(name).Timing.Queued {
		return nil
	}
	err := a.want(name, func(w *skirnir.Wanted) { w.Timing.Queued = false })
	if err != nil {
		return &service.Error{Op: "stop", Service: name, Kind: service.HostUnavailable,
			Err: fmt.Errorf("it ended, but that another run waits could not be forgotten: %w", err)}
	}
	return nil
}

// cutOff tells whether what ran when the host went down was begun by a schedule that makes
// up for nothing.
func cutOff(d *definition, w skirnir.Wanted) bool {
	s := d.spec.Schedule
	return !s.IsZero() && s.Missed == service.MissedSkip && w.Options.Actor == scheduler
}
