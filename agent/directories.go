package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
)

// retakeDir makes and takes those directories anew that somebody has removed under us,
// and makes dir, which is one of them or in one. What was in those that could be is
// written anew, also when others can not. The error is that of dir.
func (a *Agent) retakeDir(dir string) (err error) {
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
		top := filepath.Dir(d.lock)
		a.cfg.Log.Error("a directory was removed under the agent; it is made anew", "directory", top)
		switch failed := a.retakeTop(d.lock, d.make); {
		case failed == nil:
			lost = true
		case dir == top || strings.HasPrefix(dir, top+"/"):
			err = failed
		default:
			a.cfg.Log.Error("a directory can not be made anew", "directory", top, "error", failed)
		}
	}
	if _, there := os.Stat(dir); err == nil && errors.Is(there, fs.ErrNotExist) {
		err = skirnir.MakeDir(dir, 0o700)
		lost = lost || err == nil
	}
	return err
}

// retakeTop makes the directory of a lock anew, and takes that.
func (a *Agent) retakeTop(lock string, makeIt func() error) error {
	dir := filepath.Dir(lock)
	if err := makeIt(); err != nil {
		return fmt.Errorf("make %s anew: %w", dir, err)
	}
	if err := skirnir.MakeDir(dir, 0o750); err != nil {
		return err
	}
	return a.take(lock)
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
		wish := a.torn[name]
		a.torn[name] = wish // that it is to run is in no more doubt than before, whatever the disk holds
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
	a.renewHistories()
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
