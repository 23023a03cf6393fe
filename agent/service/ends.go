package service

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
)

// Ends is a set of ways in which a main process may end: exit codes and signals.
type Ends struct {
	codes   [4]uint64
	signals uint32 // bit n is that of signal n, of those that have a name
}

// And adds a way to end.
func (e Ends) And(x Exit) Ends {
	switch {
	case x.Signal > 0 && x.Signal < 32:
		e.signals |= 1 << x.Signal
	case x.Signal == 0 && x.Code >= 0 && x.Code < 256:
		e.codes[x.Code/64] |= 1 << (x.Code % 64)
	}
	return e
}

// Has tells whether it was in one of these ways that a main process ended. An end of
// which nobody knows how is none of them.
func (e Ends) Has(x Exit) bool {
	if x.Unknown != "" {
		return false
	}
	one := Exit{Code: x.Code, Signal: x.Signal}
	return e.And(one) == e && Ends{}.And(one) != Ends{}
}

// All are the ways in the set, codes first.
func (e Ends) All() (all []Exit) {
	for code := range 256 {
		if x := (Exit{Code: code}); e.Has(x) {
			all = append(all, x)
		}
	}
	for signal := syscall.Signal(1); signal < 32; signal++ {
		if x := (Exit{Signal: signal}); e.Has(x) {
			all = append(all, x)
		}
	}
	return all
}

// Words are the ways in the set as people write them: a number, or the name of a signal.
func (e Ends) Words() []any {
	words := []any{}
	for _, x := range e.All() {
		if x.Signal != 0 {
			words = append(words, SignalName(x.Signal))
		} else {
			words = append(words, x.Code)
		}
	}
	return words
}

func (e Ends) String() string {
	return strings.Trim(fmt.Sprint(e.Words()), "[]")
}

// IsZero tells whether there is none.
func (e Ends) IsZero() bool { return e == Ends{} }

// MarshalJSON writes e.Words.
func (e Ends) MarshalJSON() ([]byte, error) { return json.Marshal(e.Words()) }

// UnmarshalJSON reads what MarshalJSON has written.
func (e *Ends) UnmarshalJSON(data []byte) error {
	var words []any
	if err := json.Unmarshal(data, &words); err != nil {
		return err
	}
	*e = Ends{}
	for _, word := range words {
		switch w := word.(type) {
		case float64:
			*e = e.And(Exit{Code: int(w)})
		case string:
			signal, err := ParseSignal(w)
			if err != nil {
				return err
			}
			*e = e.And(Exit{Signal: signal})
		}
	}
	return nil
}

// overlap are ways in both.
func (e Ends) overlap(other Ends) (both Ends) {
	for _, x := range e.All() {
		if other.Has(x) {
			both = both.And(x)
		}
	}
	return both
}
