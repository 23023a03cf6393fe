package api

import "sync"

// account is whom something is counted for.
type account struct {
	transport transport
	uid       uint32
}

func (p Peer) account() account { return account{p.transport, p.UID} }

// shares counts what is open, in all and for each account, so that neither
// everybody together nor somebody alone can make the agent hold too much.
type shares struct {
	most, each int
	reserved   int // of most, for those whom no share binds

	mu    sync.Mutex
	total int
	users map[account]int // only those above zero
	full  bool            // something was refused, and nothing was given back since
}

func newShares(most, each int) *shares {
	return &shares{most: most, each: each, reserved: most / 16, users: map[account]int{}}
}

// share is how many an account may have open. Over TCP nobody knows who calls:
// all those callers have one account, and half of everything.
func (s *shares) share(who account) int {
	if who.transport == loopback {
		return s.most / 2
	}
	return s.each
}

// take counts one for who, whom a share binds only if bound is set. give takes
// it back, once. first tells of a refusal whether it is the first of a row,
// which is the one to log.
func (s *shares) take(who account, bound bool) (give func(), ok, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.most
	if bound {
		most -= s.reserved
	}
	if s.total >= most || bound && s.users[who] >= s.share(who) {
		first, s.full = !s.full, true
		return nil, false, first
	}
	s.total++
	s.users[who]++
	return sync.OnceFunc(func() { s.give(who) }), true, false
}

func (s *shares) give(who account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = false
	s.total--
	if s.users[who]--; s.users[who] == 0 {
		delete(s.users, who)
	}
}
