package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
)

// Power tells how the host is powered.
type Power interface {
	// Read looks how it is now. What it tells holds besides an error, which is of
	// what could not be read.
	Read() (service.Power, error)
	// News has a value when that may have changed.
	News() <-chan struct{}
}

// Who asks for what is done about the battery.
const (
	holder  = "the agent, to save the battery"
	resumer = "the agent, since the battery is not low any more"
)

// stepTime bounds the wait for one service, so that one that is slow to end does not
// keep the others going.
const stepTime = time.Minute

// supply is what the agent knows of the host's power, and does about it.
type supply struct {
	look chan struct{} // full when somebody wants it looked at anew

	mu      sync.Mutex // of what follows
	now     service.Power
	fault   error // of the latest look
	battery byggvir.Battery

	// Of who attends alone.
	saved service.PowerLevel    // as it is on disk
	queue []service.Name        // to be held, the next first
	tried map[service.Name]bool // brought back in vain
}

// recallPower takes up what an earlier agent of this boot did about the battery, so that
// what somebody started since is left alone. What it had not come to the end of is begun
// again.
func (a *Agent) recallPower() {
	left, err := a.store.Power()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.scar("what was done about the battery could not be read", err, "nothing has to be done; should the battery be low, services are stopped for it again")
	}
	if err == nil && left.BootID == a.bootID {
		a.power.battery.Level, a.power.saved = left.Level, left.Level
	}
}

// attendPower does what the policy says, until the agent leaves. It sleeps until there
// are news.
func (a *Agent) attendPower(wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for a.ctx.Err() == nil {
		if a.stepPower() {
			wait = a.lookAtPower()
			continue
		}
		a.savePower()
		timer.Stop()
		if wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-a.ctx.Done():
		case <-a.cfg.Power.News():
		case <-a.power.look:
		case <-timer.C:
		}
		wait = a.lookAtPower()
	}
}

// lookAtPower looks how the host is powered, and tells how long to look again if nothing
// happens; 0 for not at all.
func (a *Agent) lookAtPower() (wait time.Duration) {
	now, err := a.cfg.Power.Read()
	a.mu.Lock()
	policy := powerPolicy(a.settings)
	a.mu.Unlock()
	p := &a.power
	p.mu.Lock()
	before, fault := p.battery.Level, p.fault
	p.battery, wait = policy.Next(p.battery, now, time.Now())
	p.now, p.fault = now, err
	level := p.battery.Level
	p.mu.Unlock()
	if err != nil && (fault == nil || fault.Error() != err.Error()) {
		a.cfg.Log.Warn("a power supply can not be read", "error", err)
	}
	if level != before {
		a.levelled(level, now)
	}
	return wait
}

func powerPolicy(s config.Agent) byggvir.PowerPolicy {
	return byggvir.PowerPolicy{StopBelow: s.StopServicesBelow, ReduceBelow: s.ReduceMonitoringBelow}
}

// levelled tells of another level, and begins what it asks for.
func (a *Agent) levelled(level service.PowerLevel, now service.Power) {
	a.cfg.Log.Warn("how far the battery is saved has changed", "level", level, "power", now)
	a.registry.Tell(skirnir.News{Kind: service.NoticePower, Reason: level.String(), Detail: now.String()})
	a.pace(level)
	a.power.queue, a.power.tried = nil, map[service.Name]bool{}
	if level != service.PowerLow {
		return
	}
	for _, s := range a.sacrifice(func(s *service.Status) bool {
		return s.Machine.State.Alive() || s.Machine.State == service.Backoff || s.Machine.State == service.Waiting
	}) {
		a.power.queue = append(a.power.queue, s)
	}
}

// pace has health checks and looks at what services use be as many as a level allows.
func (a *Agent) pace(level service.PowerLevel) {
	slower := 1
	if level >= service.PowerReduced {
		slower = byggvir.SlowerChecks
	}
	a.roskva.Slow(slower)
	a.monitor.Slow(slower)
}

// sacrifice names those services that are not essential, in the order in which they are
// held.
func (a *Agent) sacrifice(which func(*service.Status) bool) (names []service.Name) {
	var specs []*service.Spec
	for _, s := range a.registry.List() {
		if which(s) {
			specs = append(specs, s.Spec)
		}
	}
	for _, s := range byggvir.Sacrifice(specs) {
		names = append(names, s.Name)
	}
	return names
}

// stepPower holds the next service, or brings the next one back. It tells whether there
// was one.
func (a *Agent) stepPower() bool {
	if a.PowerLevel() == service.PowerLow {
		if len(a.power.queue) == 0 {
			return false
		}
		name := a.power.queue[0]
		a.power.queue = a.power.queue[1:]
		a.hold(name)
		return true
	}
	held := a.sacrifice(func(s *service.Status) bool {
		return (s.Machine.State == service.Held || s.Machine.Spared) && !a.power.tried[s.Name]
	})
	if len(held) == 0 {
		return false
	}
	name := held[len(held)-1]
	a.power.tried[name] = true
	if s, known := a.registry.Get(name); known && s.Machine.Spared {
		a.unspare(name)
		if s, known := a.registry.Get(name); known && !s.Machine.Spared { // it may be ending, and held then
			delete(a.power.tried, name)
		}
	} else {
		a.resume(name)
	}
	return true
}

// hold freezes or ends a service to save the battery.
func (a *Agent) hold(name service.Name) {
	if a.spare(name) {
		return
	}
	ctx, cancel := context.WithTimeout(a.ctx, stepTime)
	defer cancel()
	a.cfg.Log.Info("a service is stopped to save the battery", "service", name)
	err := a.thjalfi.Hold(ctx, name, nil, holder)
	switch {
	case err == nil || a.ctx.Err() != nil:
	case ctx.Err() != nil: // it goes on without us
		a.cfg.Log.Warn("a service takes its time to stop; the next is not kept waiting", "service", name)
	default:
		a.cfg.Log.Error("a service can not be stopped to save the battery", "service", name, "error", err)
	}
}

// spare freezes a service whose definition says so, and tells whether that is done. One
// that can not be frozen, as it is not ready or has no cgroup, is to be stopped.
func (a *Agent) spare(name service.Name) bool {
	s, known := a.registry.Get(name)
	if !known || s.Spec.LowBattery != service.LowBatteryFreeze || !s.Machine.State.Alive() {
		return false
	}
	if s.Machine.Frozen { // by somebody else
		return true
	}
	ctx, cancel := context.WithTimeout(a.ctx, stepTime)
	defer cancel()
	err := a.thjalfi.Spare(ctx, name, holder)
	switch {
	case err == nil:
		a.cfg.Log.Info("a service is frozen to save the battery", "service", name)
		return true
	case a.ctx.Err() != nil: // the agent leaves, and the next one sees to it
		return true
	}
	a.cfg.Log.Warn("a service can not be frozen to save the battery, and is stopped", "service", name, "error", err)
	return false
}

// unspare thaws a service that was frozen to save the battery.
func (a *Agent) unspare(name service.Name) {
	ctx, cancel := context.WithTimeout(a.ctx, stepTime)
	defer cancel()
	a.cfg.Log.Info("a service that was frozen to save the battery is thawed", "service", name)
	if err := a.thjalfi.Thaw(ctx, name, resumer); err != nil && a.ctx.Err() == nil {
		a.cfg.Log.Error("a service that was frozen to save the battery can not be thawed", "service", name, "error", err)
	}
}

// resume starts a service again that was held, as it was started before.
func (a *Agent) resume(name service.Name) {
	ctx, cancel := context.WithTimeout(a.ctx, stepTime)
	defer cancel()
	a.cfg.Log.Info("a service that was stopped to save the battery is started again", "service", name)
	options := a.wantedOf(name).Options
	options.Actor = resumer
	_, err := a.Start(ctx, name, options)
	if err != nil && a.ctx.Err() == nil {
		a.cfg.Log.Error("a service that was stopped to save the battery can not be started again", "service", name, "error", err)
		a.registry.Update(name, skirnir.News{Kind: service.NoticeState, Reason: "held", Detail: err.Error()}, func(s *service.Status) {
			if s.Machine.State == service.Held { // else its own failure tells
				s.Error = "stopped to save the battery, and could not be started again: " + err.Error()
			}
		})
	}
}

// postpone notes that a service is to run which is not started while the battery is
// low, if it is one of those.
func (a *Agent) postpone(name service.Name, options service.StartOptions) (postponed bool, err error) {
	level := a.PowerLevel()
	if level != service.PowerLow {
		return false, nil
	}
	plan, err := a.launchPlan("start", name, options)
	if err != nil || !byggvir.Saves(level, plan.Spec.Power) {
		return false, err
	}
	admitted, err := a.admit("start", plan)
	if err != nil {
		return true, err
	}
	defer admitted()
	a.cfg.Log.Info("a service is not started, to save the battery", "service", name)
	return true, a.thjalfi.Hold(a.ctx, name, &plan, holder)
}

// saved tells whether a service is not to run now, to save the battery.
func (a *Agent) saved(name service.Name) bool {
	level := a.PowerLevel()
	s, known := a.registry.Get(name)
	return known && s.Spec != nil && byggvir.Saves(level, s.Spec.Power)
}

// holdLate holds a service whose start was begun before the battery was low, and seen by
// nobody who looked for those that run then; unless somebody has started it since.
func (a *Agent) holdLate(name service.Name, starter string) {
	if a.ctx.Err() != nil || !a.saved(name) {
		return
	}
	s, known := a.registry.Get(name)
	if known && s.LastActor == starter && (s.Machine.State.Alive() || s.Machine.State == service.Backoff || s.Machine.State == service.Waiting) {
		a.hold(name)
	}
}

// savePower keeps how far the battery is saved for the next agent, once all that is done.
func (a *Agent) savePower() {
	level := a.PowerLevel()
	if level == a.power.saved {
		return
	}
	if err := a.store.SavePower(skirnir.Power{Level: level, BootID: a.bootID}); err != nil {
		a.cfg.Log.Error("what was done about the battery can not be recorded; the next agent may do it again", "error", err)
		return
	}
	a.power.saved = level
}

// PowerLevel is how far the battery is saved.
func (a *Agent) PowerLevel() service.PowerLevel {
	a.power.mu.Lock()
	defer a.power.mu.Unlock()
	return a.power.battery.Level
}

// lookSoon has the power supply looked at, for there may be drivers that tell nothing.
func (a *Agent) lookSoon() {
	select {
	case a.power.look <- struct{}{}:
	default:
	}
}

// powerInfo is how the host is powered, read anew.
func (a *Agent) powerInfo() service.PowerInfo {
	now, _ := a.cfg.Power.Read() // what could not be read is told by the doctor
	a.lookSoon()
	a.mu.Lock()
	policy := powerPolicy(a.settings)
	a.mu.Unlock()
	return service.PowerInfo{Power: now, Level: a.PowerLevel(), StopBelow: policy.StopBelow, ReduceBelow: policy.ReduceBelow}
}

// powerFindings tells the doctor what is done to save the battery, and of supplies that
// can not be read.
func (a *Agent) powerFindings() (findings []service.Finding) {
	now, err := a.cfg.Power.Read()
	if err != nil {
		findings = append(findings, service.Finding{
			Level: service.SeverityWarning, Title: "a power supply can not be read", Detail: err.Error(), Fix: "See to its driver; until then it does not count.",
		})
	}
	if a.PowerLevel() != service.PowerFull {
		findings = append(findings, service.Finding{
			Level: service.SeverityWarning, Title: "the battery is saved: the host is " + now.String(), Detail: a.savings(), Fix: "Connect it to the mains.",
		})
	}
	return findings
}

// savings says what is done to save the battery.
func (a *Agent) savings() string {
	text := fmt.Sprintf("Health checks and looks at what services use are %d times as far apart.", byggvir.SlowerChecks)
	held := a.sacrifice(func(s *service.Status) bool { return s.Machine.State == service.Held })
	if len(held) > 0 {
		text += fmt.Sprintf(" These services are stopped, and start again on AC: %s.", listed(held))
	}
	spared := a.sacrifice(func(s *service.Status) bool { return s.Machine.Frozen && s.Machine.Spared })
	if len(spared) > 0 {
		text += fmt.Sprintf(" These services are frozen, and thawed on AC: %s.", listed(spared))
	}
	return text
}

// listed is services in the order of their names, with commas between.
func listed(services []service.Name) string {
	slices.SortFunc(services, byName)
	var words []string
	for _, name := range services {
		words = append(words, name.String())
	}
	return strings.Join(words, ", ")
}
