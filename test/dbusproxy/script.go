package dbusproxy

import (
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// Rule says what is done to some messages.
type Rule struct {
	Kind   dbus.Type // a method call, a reply (errors are some, too) or a signal; 0: any
	Member string    // the method or the signal, of a reply that of its call; "": any
	Skip   int       // so many pass first
	Times  int       // to so many it is done; 0: to all
	Early  bool      // also to what a client says and hears before it has subscribed to signals
	Do     Deed

	mu         *sync.Mutex // the proxy's
	seen, done int
}

// Done is to how many messages it was done.
func (r *Rule) Done() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done
}

// Deed is what is done to a message.
type Deed struct {
	what  what
	delay time.Duration
}

type what uint8

const (
	pass what = iota
	drop
	repeat
	swap
	cut
	cutAfter
)

// The deeds.
var (
	Pass     = Deed{what: pass}     // nothing: the rule counts
	Drop     = Deed{what: drop}     // it never arrives
	Repeat   = Deed{what: repeat}   // it arrives twice
	Swap     = Deed{what: swap}     // it arrives behind the next one that goes the same way
	Cut      = Deed{what: cut}      // it never arrives, and the connection breaks
	CutAfter = Deed{what: cutAfter} // the connection breaks as soon as it has arrived
)

// Delay keeps a message, and all that follow it on the same way.
func Delay(d time.Duration) Deed { return Deed{delay: d} }

// judge finds what is to be done to a message.
func (p *Proxy) judge(m *message) Deed {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.rules {
		if r.Kind != 0 && r.Kind != m.kind || r.Member != "" && r.Member != m.member || m.early && !r.Early {
			continue
		}
		r.seen++
		if r.seen > r.Skip && (r.Times == 0 || r.done < r.Times) {
			r.done++
			return r.Do
		}
	}
	return Pass
}
