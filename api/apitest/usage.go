package apitest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// UsageHistory tells what Service.History holds of the time since, whatever the step.
func (a *Agent) UsageHistory(name service.Name, since time.Time, _ time.Duration, most int) ([]service.Sample, error) {
	s, err := a.of(context.Background(), "UsageHistory", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	if s.History == nil {
		return nil, &service.Error{Op: "tell the usage history of", Service: name, Kind: service.Conflict, Reason: service.ReasonNoHistory,
			Err: errors.New("it is not remembered what it uses")}
	}
	var out []service.Sample
	for _, sample := range s.History {
		if !sample.Began.Before(since) {
			out = append(out, sample)
		}
	}
	if most > 0 {
		out = out[max(0, len(out)-most):]
	}
	return out, nil
}

// Recommend tells what Service.Advice holds.
func (a *Agent) Recommend(ctx context.Context, name service.Name, _ time.Time) (service.Advice, error) {
	s, err := a.of(ctx, "Recommend", name)
	if err != nil {
		return service.Advice{}, err
	}
	defer a.mu.Unlock()
	if s.Advice == nil {
		return service.Advice{}, &service.Error{Op: "recommend limits for", Service: name, Kind: service.Conflict, Reason: service.ReasonNoHistory,
			Err: errors.New("it is not remembered what it uses")}
	}
	return *s.Advice, nil
}

// WatchUsage gives what Service.History holds, once, and then nothing until ctx ends.
func (a *Agent) WatchUsage(ctx context.Context, _ time.Duration, names ...service.Name) <-chan service.Used {
	if a.enter(ctx, "WatchUsage") != nil {
		none := make(chan service.Used)
		close(none)
		return none
	}
	defer a.mu.Unlock()
	var all []service.Used
	for _, s := range a.services {
		if len(names) == 0 || slices.Contains(names, s.Status.Name) {
			for _, sample := range s.History {
				all = append(all, service.Used{Service: s.Status.Name, Sample: sample})
			}
		}
	}
	used := make(chan service.Used, len(all))
	for _, u := range all {
		used <- u
	}
	a.watchingUsage++
	context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.watchingUsage--
		close(used)
	})
	return used
}

// UsageWatchers tells how many usage watches are open.
func (a *Agent) UsageWatchers() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.watchingUsage
}
