package skirnir

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

// errnos are what the kernel may say to any call.
var errnos = []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS, syscall.EMFILE, syscall.ENOMEM, syscall.EINTR}

// countdown lets the nth call fail and, if the disk is to be dead from then on, all
// that follow. A write that fails has written half of it.
type countdown struct {
	left  int
	errno syscall.Errno
	dead  bool
	hit   map[string]bool // calls that failed, with the directory
}

func (c *countdown) fault(call, path string) error {
	if c.left--; c.left != 0 && (!c.dead || c.left > 0) {
		return nil
	}
	c.hit[call+" "+filepath.Base(filepath.Dir(path))] = true
	if call == "write" {
		_ = os.WriteFile(path, []byte(`{"format":1,"crc32c":12`), 0o600)
	}
	return c.errno
}

// eachCall runs f with every call failing in turn, until none is left to fail. It
// wants that calls like these were among them.
func eachCall(t *testing.T, f func(t *testing.T, c *countdown), calls ...string) {
	t.Helper()
	hit := map[string]bool{}
	for _, dead := range []bool{false, true} {
		for n := 1; ; n++ {
			c := &countdown{left: n, errno: errnos[n%len(errnos)], dead: dead, hit: hit}
			f(t, c)
			if c.left > 0 {
				break
			}
		}
	}
	for _, call := range calls {
		require.True(t, hit[call], "%s never failed, of %v", call, slices.Sorted(maps.Keys(hit)))
	}
}

// deed is one write or removal, and what of its service is on disk then.
type deed struct {
	name  string
	value string
	do    func(*Store) error
}

// story writes, rewrites and forgets records of each kind.
func story() []deed {
	var all []deed
	save := func(service_ string, generation int) {
		name := service.MustName(service_)
		value := fmt.Sprint(generation)
		all = append(all,
			deed{"wanted " + service_, value, func(s *Store) error { return s.SaveWanted(Wanted{Name: name, Generation: uint64(generation)}) }},
			deed{"actual " + service_, value, func(s *Store) error { return s.SaveActual(Actual{Name: name, LogFrom: int64(generation)}) }},
			deed{"exits " + service_, value, func(s *Store) error {
				return s.SaveExits(name, []service.ExitRecord{{Incarnation: uint64(generation)}})
			}},
			deed{"outputs " + service_, value, func(s *Store) error {
				return s.SaveOutputs(name, []service.Output{{Incarnation: uint64(generation)}})
			}})
	}
	save("web", 1)
	save("db", 1)
	save("web", 2)
	db := service.MustName("db")
	all = append(all, deed{"actual db", "", func(s *Store) error { return s.ForgetActual(db) }})
	save("web", 3)
	return all
}

// onDisk is what a Load without faults finds.
func onDisk(t *testing.T, s *Store) map[string]string {
	t.Helper()
	s.Fault = nil
	l, err := s.Load()
	require.NoError(t, err)
	require.Empty(t, l.Faults)
	found := map[string]string{}
	for _, w := range l.Wanted {
		found["wanted "+w.Name.String()] = fmt.Sprint(w.Generation)
	}
	for _, a := range l.Actual {
		found["actual "+a.Name.String()] = fmt.Sprint(a.LogFrom)
	}
	for name, x := range l.Exits {
		found["exits "+name.String()] = fmt.Sprint(x[0].Incarnation)
	}
	for name, o := range l.Outputs {
		found["outputs "+name.String()] = fmt.Sprint(o[0].Incarnation)
	}
	return found
}

// Whatever call fails, and whether the disk recovers or not: what was acknowledged is
// on disk, a write that failed left the old record or the new one, and no more than
// that (invariant I4).
func TestEveryWriteFails(t *testing.T) {
	eachCall(t, func(t *testing.T, c *countdown) {
		s, state, run := openStore(t)
		s.Fault = c.fault
		allowed := map[string][]string{} // by record: what was acknowledged last, and what was tried since
		for _, d := range story() {
			if allowed[d.name] == nil {
				allowed[d.name] = []string{""}
			}
			if err := d.do(s); err != nil {
				require.ErrorIs(t, err, c.errno)
				allowed[d.name] = append(allowed[d.name], d.value)
				continue
			}
			allowed[d.name] = []string{d.value}
		}
		again, err := OpenStore(state, run, anew)
		require.NoError(t, err)
		found := onDisk(t, again)
		for name, values := range allowed {
			require.Contains(t, values, found[name], name)
		}
		for _, dir := range []string{again.wanted, again.actual, again.exits, again.outputs} {
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			for _, e := range left {
				require.True(t, strings.HasSuffix(e.Name(), ".json") && e.Name()[0] != '.', "left over: %s", e.Name())
			}
		}
		s.Fault = nil // once the disk is well, so is the store
		for _, d := range story()[len(story())-4:] {
			require.NoError(t, d.do(s))
		}
		found = onDisk(t, again)
		for _, kind := range []string{"wanted web", "actual web", "exits web", "outputs web"} {
			require.Equal(t, "3", found[kind])
		}
	}, "open services", "write services", "fsync services", "close services", "rename services", "remove services",
		"open exits", "write exits", "fsync exits", "close exits", "rename exits", "fsync state")
}

// Whatever call of a Load fails: nothing that is whole is set aside or lost, and
// nothing is written in the stead of what could not be read.
func TestEveryReadFails(t *testing.T) {
	eachCall(t, func(t *testing.T, c *countdown) {
		s, state, _ := openStore(t)
		for _, d := range story() {
			require.NoError(t, d.do(s))
		}
		require.NoError(t, os.WriteFile(filepath.Join(state, "services", ".web.json"), []byte("half"), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(state, "services", "bad.json"), []byte("{"), 0o600))
		s.Fault = c.fault
		l, err := s.Load()
		require.NoError(t, err)
		if c.left <= 0 {
			require.ErrorIs(t, errors.Join(l.Faults...), c.errno)
		}
		unread := len(l.Wanted) < 2 || len(l.Exits) < 2 || len(l.Outputs) < 2
		s.Fault = nil
		refused := 0
		for _, d := range story() {
			if err := d.do(s); err != nil {
				require.ErrorContains(t, err, "could not be read when the agent started")
				refused++
			}
		}
		require.Equal(t, unread, refused > 0)
		again, err := OpenStore(state, filepath.Dir(s.actual), anew)
		require.NoError(t, err)
		again.Fault = nil
		_, err = again.Load() // sets aside what could not be set aside before
		require.NoError(t, err)
		require.Equal(t, map[string]string{"wanted web": "3", "actual web": "3", "exits web": "3", "outputs web": "3", "wanted db": "1", "exits db": "1", "outputs db": "1"}, onDisk(t, again))
		aside, err := filepath.Glob(filepath.Join(state, "*", "*.corrupt-*"))
		require.NoError(t, err)
		require.Len(t, aside, 1)
		require.Contains(t, aside[0], "bad.json")
	}, "open services", "read services", "remove services", "rename services", "open exits", "read exits")
}
