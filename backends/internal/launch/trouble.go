package launch

import (
	"fmt"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
)

// WatchLogs has tell told of every log that the shim can not write, when that begins
// and when it ends, and at once of those where it lasts. It must not block. Only the
// last who asks is told. An earlier agent may have left a shim, which is looked for.
// Without a shim there is nothing to tell.
func (s *Shim) WatchLogs(tell func(service.LogTrouble)) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.watches = tell
	for _, t := range s.untold {
		tell(t)
	}
	s.untold = nil
	for _, t := range s.troubles {
		tell(t)
	}
	found := s.line != nil
	s.mu.Unlock()
	if !found {
		s.search()
	}
}

// troubled takes what the shim says of a log.
func (s *Shim) troubled(l *line, said gate.Trouble) {
	t := service.LogTrouble{
		Policy: service.LogFullDrop, Why: said.Errno.Error(), Began: time.Unix(0, said.Began), Bytes: said.Bytes, Lines: said.Lines,
	}
	if said.Block {
		t.Policy = service.LogFullBlock
	}
	if said.Ended != 0 {
		t.Ended = time.Unix(0, said.Ended)
	}
	var name string
	if _, err := fmt.Sscanf(said.Whose, "%s %d", &name, &t.Incarnation); err != nil {
		return
	}
	var err error
	if t.Service, err = service.ParseName(name); err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.Lasts() {
		s.troubles[said.Whose], l.troubles[said.Whose] = t, true
	} else {
		delete(s.troubles, said.Whose)
		delete(l.troubles, said.Whose)
	}
	s.tellTrouble(t)
}

// tellTrouble tells who watches. What lasts is told to the next one, too. The caller
// holds mu.
func (s *Shim) tellTrouble(t service.LogTrouble) {
	switch {
	case s.watches != nil:
		s.watches(t)
	case !t.Lasts():
		s.untold = append(s.untold, t)
	}
}

// settleTroubles ends those of which the shim that is there, if one is, knows nothing:
// it is not the one that had them.
func (s *Shim) settleTroubles(l *line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for whose, t := range s.troubles {
		if l != nil && l.troubles[whose] {
			continue
		}
		delete(s.troubles, whose)
		t.Ended, t.Lost = time.Now(), true
		s.tellTrouble(t)
	}
}
