package service

import (
	"fmt"
	"regexp"
)

// MaxNameLength is the longest service name in bytes. It keeps unit names
// (systemd: 255) and cgroup directories (NAME_MAX: 255) far from their ends.
const MaxNameLength = 63

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9]*([-_][a-z0-9]+)*$`)

// Name is the name of a service. Outside this package a Name comes only from
// ParseName or a decoder that calls it, so one that is not zero is valid: it
// holds no dot, slash, space or control character, and can not clash with a
// kernel file such as cgroup.procs. The zero Name names nothing.
type Name struct{ text string }

// ParseName checks text against ^[a-z][a-z0-9]*([-_][a-z0-9]+)*$ and
// MaxNameLength. The error is of Kind Invalid and never repeats more than a
// quoted start of the text.
func ParseName(text string) (Name, error) {
	if len(text) > MaxNameLength {
		return Name{}, &Error{Op: "read name", Kind: Invalid, Reason: ReasonBadName,
			Err: fmt.Errorf("%.20q… has %d bytes; at most %d are allowed", text, len(text), MaxNameLength)}
	}
	if !nameForm.MatchString(text) {
		return Name{}, &Error{Op: "read name", Kind: Invalid, Reason: ReasonBadName,
			Err: fmt.Errorf("%q is not a service name: lower-case letters and digits, parts joined by single - or _, a letter first", text)}
	}
	return Name{text}, nil
}

// MustName is ParseName for names written in source code; it panics.
func MustName(text string) Name {
	n, err := ParseName(text)
	if err != nil {
		panic(err)
	}
	return n
}

func (n Name) String() string { return n.text }

// IsZero tells whether n names nothing.
func (n Name) IsZero() bool { return n.text == "" }

// MarshalText makes a Name a JSON string and a map key.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.text), nil }

// UnmarshalText accepts what ParseName accepts, and what MarshalText makes of
// the zero Name.
func (n *Name) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*n = Name{}
		return nil
	}
	parsed, err := ParseName(string(text))
	if err != nil {
		return err
	}
	*n = parsed
	return nil
}
