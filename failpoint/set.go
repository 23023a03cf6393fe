package failpoint

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Set is what happens at points, and how often each was hit. The zero value is
// ready: nothing happens. Its methods may be called by many goroutines at once.
type Set struct {
	mu    sync.Mutex
	terms map[Point][]term
	hits  map[Point]int
}

// term is an action, and how many hits it is for.
type term struct {
	left    int  // hits
	forever bool // whatever left says
	act     func(Point) error
}

// Arm replaces all that happens at points, and counts their hits anew. Of an
// error nothing has changed.
func (s *Set) Arm(text string) error {
	terms := map[Point][]term{}
	for one := range strings.SplitSeq(text, ";") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		name, actions, found := strings.Cut(one, "=")
		p := Point(name)
		switch {
		case !found:
			return fmt.Errorf("cannot read %q: it is to be POINT=ACTION", one)
		case !slices.Contains(Points(), p):
			return fmt.Errorf("cannot arm %q: there is no such point", name)
		case terms[p] != nil:
			return fmt.Errorf("cannot arm %s twice", p)
		}
		for text := range strings.SplitSeq(actions, "->") {
			t, err := parseTerm(text)
			if err != nil {
				return fmt.Errorf("cannot read %q of %s: %w", text, p, err)
			}
			terms[p] = append(terms[p], t)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.terms, s.hits = terms, map[Point]int{}
	return nil
}

func parseTerm(text string) (term, error) {
	t := term{forever: true}
	if count, action, found := strings.Cut(text, "*"); found {
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 {
			return t, fmt.Errorf("%q is no number of hits", count)
		}
		t.left, t.forever, text = n, false, action
	}
	word, rest, given := strings.Cut(text, "(")
	argument, closed := strings.CutSuffix(rest, ")")
	if given != closed {
		return t, errors.New("a parenthesis is missing")
	}
	switch {
	case word == "error" && given:
		t.act = func(p Point) error { return fmt.Errorf("failpoint %s: %s", p, argument) }
	case word == "delay" && given:
		d, err := time.ParseDuration(argument)
		if err != nil {
			return t, err
		}
		t.act = func(Point) error { time.Sleep(d); return nil }
	case given:
		return t, fmt.Errorf("there is no %s(…)", word)
	case word == "kill":
		t.act = kill
	case word == "panic":
		t.act = func(p Point) error { panic("failpoint " + string(p)) }
	case word == "off":
		t.act = func(Point) error { return nil }
	default:
		return t, errors.New("an action is kill, error(TEXT), delay(TIME), panic or off")
	}
	return t, nil
}

// kill ends this process as nothing can keep it from: not one more instruction
// of the caller runs.
func kill(Point) error {
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {}
}

// Hit counts a hit of p and does what its terms say.
func (s *Set) Hit(p Point) error {
	if act := s.next(p); act != nil {
		return act(p)
	}
	return nil
}

// next counts a hit of p, and gives what it is to do; nil is nothing.
func (s *Set) next(p Point) func(Point) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p == "" {
		return nil
	}
	if s.hits == nil {
		s.hits = map[Point]int{}
	}
	s.hits[p]++
	for len(s.terms[p]) > 0 {
		t := &s.terms[p][0]
		if t.forever {
			return t.act
		}
		if t.left > 0 {
			t.left--
			return t.act
		}
		s.terms[p] = s.terms[p][1:]
	}
	return nil
}

// Hits tells how often each point was hit since it was armed; of none it tells
// nothing.
func (s *Set) Hits() map[Point]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[Point]int{}
	for p, n := range s.hits {
		out[p] = n
	}
	return out
}
