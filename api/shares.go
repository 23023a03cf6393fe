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

	mu    sync.Mutex
	total int
	users map[account]int // only those above zero
	full  bool            // something was refused, and nothing was given back since
}

func newShares(most, each int) *shares {
	return &shares{most: most, each: each, users: map[account]int{}}
}

// take counts one for who, whom each binds only if bound is set. give takes it
// back, once. first tells of a refusal whether it is the first of a row, which
// is the one to log.
func (s *shares) take(who account, bound bool) (give func(), ok, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= s.most || bound && s.users[who] >= s.each {
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
