package launch

import "github.com/gladsheim/gladsheim/backends/internal/launch/gate"

// AwaitStop implements process.Teller.
func (s *Shim) AwaitStop(pid int, startTicks uint64, tell func()) (forget func(), told bool) {
	c := gate.Child{PID: int32(pid), StartTicks: startTicks}
	s.mu.Lock()
	defer s.mu.Unlock()
	// While one is searched for, it may be the one.
	if !s.searching && (s.line == nil || !s.line.stops || !s.line.children[c]) {
		return nil, false
	}
	s.stirs[c] = tell
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.stirs, c)
	}, true
}

// stirred tells who waits for that, once.
func (s *Shim) stirred(children ...gate.Child) {
	s.mu.Lock()
	var tell []func()
	for _, c := range children {
		if f := s.stirs[c]; f != nil {
			tell = append(tell, f)
			delete(s.stirs, c)
		}
	}
	s.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

// disappoint tells those who wait for stops of children of no shim that is left, or of
// one that does not tell: they ask again, and learn that nobody does.
func (s *Shim) disappoint() {
	s.mu.Lock()
	var vain []gate.Child
	for c := range s.stirs {
		if !s.searching && (s.line == nil || !s.line.stops || !s.line.children[c]) {
			vain = append(vain, c)
		}
	}
	s.mu.Unlock()
	s.stirred(vain...)
}
