package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/service"
)

// openHistory opens the file in which is kept what a service used, if its definition
// asks for that.
func (a *Agent) openHistory(name service.Name, check func(io.ReaderAt) error, make bool) (byggvir.Room, error) {
	if !a.remembers(name) {
		return nil, nil
	}
	file, fault, err := a.store.OpenUsage(name, a.bootID, byggvir.HistorySize, check, make)
	if fault != nil {
		a.cfg.Log.Warn("what a service used before can not be read, and is forgotten", "service", name, "error", fault)
	}
	if file == nil {
		return nil, err
	}
	return file, nil
}

// remembers tells whether the definition of a service asks for its history.
func (a *Agent) remembers(name service.Name) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.definitions[name]
	return d != nil && d.spec.UsageHistory
}

// tellLostHistory tells, and keeps for the doctor, that a history has no file.
func (a *Agent) tellLostHistory(name service.Name, inMemory bool, why error) {
	a.cfg.Log.Warn("what a service uses can not be kept", "service", name, "in_memory", inMemory, "error", why)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unkept[name] = lostHistory{inMemory, why}
}

// renewHistories gives histories files anew.
func (a *Agent) renewHistories() {
	kept := a.history.Renew()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range kept {
		delete(a.unkept, name)
	}
}

// lostHistory is a history that has no file.
type lostHistory struct {
	inMemory bool
	why      error
}

func (l lostHistory) finding(name service.Name) service.Finding {
	f := service.Finding{
		Level: service.SeverityWarning, Title: fmt.Sprintf("what %s uses is forgotten when the agent ends", name), Detail: l.why.Error(),
		Fix: "See to the run directory, then restart the agent.",
	}
	if !l.inMemory {
		f.Title = fmt.Sprintf("what %s uses is not remembered", name)
	}
	return f
}

// reviseHistory begins or ends the history of a service as its definition asks.
func (a *Agent) reviseHistory(name service.Name) {
	if !a.remembers(name) {
		a.forgetHistory(name)
	}
	a.monitor.Revise(name)
}

// forgetHistory forgets what a service used, which does not ask for it, or is no more.
func (a *Agent) forgetHistory(name service.Name) {
	a.history.Forget(name)
	if err := a.store.ForgetUsage(name); err != nil {
		a.cfg.Log.Warn("cannot remove what a service used", "service", name, "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.unkept, name)
}

// sweepHistories removes those of services that went away, or do not ask any more. Of
// one whose definition can not be read just now it is kept.
func (a *Agent) sweepHistories(faults config.Faults) {
	err := a.store.SweepUsage(func(name service.Name) bool {
		return a.remembers(name) || a.definitions[name] == nil && a.hidden(name, faults)
	})
	if err != nil {
		a.cfg.Log.Warn("cannot remove what services used that are no more", "error", err)
	}
}

// UsageHistory tells what a service used since a time, oldest first, in steps of at
// least step, and at most as many samples as most, 0 for any number. That its definition
// does not ask for it is an error of Kind Conflict.
func (a *Agent) UsageHistory(name service.Name, since time.Time, step time.Duration, most int) ([]service.Sample, error) {
	return a.samples("tell the usage history of", name, since, step, most)
}

func (a *Agent) samples(op string, name service.Name, since time.Time, step time.Duration, most int) ([]service.Sample, error) {
	if _, err := a.Status(name); err != nil {
		return nil, err
	}
	if !a.remembers(name) {
		return nil, &service.Error{Op: op, Service: name, Kind: service.Conflict, Reason: service.ReasonNoHistory,
			Err: errors.New("it is not remembered what it uses")}
	}
	ago := time.Since(since)
	samples, err := a.history.Samples(name, ago, step)
	if err == nil && most > 0 && len(samples) > most {
		span := samples[len(samples)-1].Ended().Sub(samples[0].Began)
		samples, err = a.history.Samples(name, ago, max(step, (span+time.Duration(most)-1)/time.Duration(most)))
		samples = samples[max(0, len(samples)-most):] // steps begin at times of their own
	}
	if err != nil {
		return nil, &service.Error{Op: op, Service: name, Kind: service.HostUnavailable, Err: err}
	}
	return samples, nil
}

// Recommend tells what limits would fit what a service used since a time. That too little
// is known of it is an error of Kind Conflict.
func (a *Agent) Recommend(ctx context.Context, name service.Name, since time.Time) (service.Advice, error) {
	const op = "recommend limits for"
	samples, err := a.samples(op, name, since, 0, 0)
	if err != nil {
		return service.Advice{}, err
	}
	holds, err := a.Limits(ctx, name)
	if err != nil {
		return service.Advice{}, err
	}
	host, err := a.capacity()
	if err != nil {
		return service.Advice{}, &service.Error{Op: op, Service: name, Kind: service.HostUnavailable, Err: err}
	}
	advice, err := byggvir.Advise(samples, holds, host.SystemUsage)
	if err != nil {
		return service.Advice{}, &service.Error{Op: op, Service: name, Kind: service.Conflict, Reason: service.ReasonNoHistory, Err: err}
	}
	if u, _, err := a.Usage(ctx, name); err == nil { // else it does not run
		advice.Evidence.KernelPeak = u.MemoryPeak
		if u.Swap.Value > 0 { // the history knows of none
			advice.Confidence = service.ConfidenceLow
			swapped := fmt.Sprintf("it has %s in swap, which is not in what it held", service.FormatSize(u.Swap.Value))
			advice.Doubt = strings.TrimPrefix(advice.Doubt+"; "+swapped, "; ")
		}
	}
	return advice, nil
}

// WatchUsage gives what services use until ctx ends, of each at once and then after
// about an interval; of all that run if none is named.
func (a *Agent) WatchUsage(ctx context.Context, interval time.Duration, names ...service.Name) <-chan service.Used {
	shown, leave := a.history.Watch(interval, names...)
	a.monitor.Revise(names...)
	context.AfterFunc(ctx, func() {
		leave()
		a.monitor.Revise(names...)
	})
	return shown
}
