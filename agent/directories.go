package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
)

// retakeDirs makes and takes those directories anew that somebody has removed under us.
// What was in those that could be is written anew, also when others can not.
func (a *Agent) retakeDirs() error {
	a.losing.Lock()
	defer a.losing.Unlock()
	lost := false
	defer func() {
		if lost {
			a.background.Go(a.writeAnew)
		}
	}()
	asAtTheStart := func() error { return nil } // lock makes it
	for _, d := range []struct {
		lock string
		make func() error
	}{{lockOf(a.cfg.StateDir), asAtTheStart}, {lockOf(a.cfg.RunDir), a.cfg.MakeRunDir}, {a.logsLock(), a.cfg.Logs.MakeDir}} {
		if a.holds(d.lock) {
			continue
		}
		dir := filepath.Dir(d.lock)
		a.cfg.Log.Error("a directory was removed under the agent; it is made anew", "directory", dir)
		if err := d.make(); err != nil {
			return fmt.Errorf("make %s anew: %w", dir, err)
		}
		if err := skirnir.MakeDir(dir, 0o750); err != nil {
			return err
		}
		if err := a.take(d.lock); err != nil {
			return err
		}
		lost = true
	}
	return nil
}

// holds tells whether what is at path is the file that we have locked.
func (a *Agent) holds(path string) bool {
	ours, err := a.locks[path].Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(ours, there)
}

// writeAnew has everything written that we know, after a directory was lost with it.
// What still can not be is for the doctor.
func (a *Agent) writeAnew() {
	a.writing.Lock()
	a.mu.Lock()
	names := slices.Collect(maps.Keys(a.definitions))
	for _, name := range names {
		a.torn[name] = true
		if len(a.exits[name]) > 0 {
			a.unburied[name] = true
		}
	}
	undefined := slices.DeleteFunc(slices.Collect(maps.Keys(a.wanted)), func(name service.Name) bool { return a.definitions[name] != nil })
	a.mu.Unlock()
	for _, name := range undefined { // whose definition can not be read just now, say
		if err := a.rewrite(name, true, func(*skirnir.Wanted) {}); err != nil {
			a.cfg.Log.Error("cannot write anew what is wanted of a service", "service", name, "error", err)
		}
	}
	for _, name := range names {
		if all := a.Outputs(name); len(all) > 0 {
			a.written(name, a.saveOutputs(name, all))
		}
	}
	a.writing.Unlock()
	a.recordAll(a.ctx, names)
}

// recordAll writes down once more what services are; written keeps the outcome.
func (a *Agent) recordAll(ctx context.Context, names []service.Name) {
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() { _ = a.thjalfi.Record(ctx, name) })
	}
	all.Wait()
}
