package service

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Rlimit is a limit that each process has of its own (setrlimit(2)).
type Rlimit struct {
	Kind       RlimitKind
	Soft, Hard uint64 // Unlimited: no limit
}

// RlimitKind is the number of such a limit in the kernel.
type RlimitKind uint8

// Those that somebody sets apart. The others have no name of their own here.
const (
	RlimitNoFile RlimitKind = 7
	RlimitNice   RlimitKind = 13
	RlimitRTTime RlimitKind = 15
)

// rlimits are all of them, by their numbers, as prlimit(1) names them.
var rlimits = [...]struct {
	name  string
	bytes bool
}{
	{"cpu", false}, {"fsize", true}, {"data", true}, {"stack", true}, {"core", true}, {"rss", true}, {"nproc", false}, {"nofile", false},
	{"memlock", true}, {"as", true}, {"locks", false}, {"sigpending", false}, {"msgqueue", true}, {"nice", false}, {"rtprio", false}, {"rttime", false},
}

func (k RlimitKind) String() string { return rlimits[k].name }

// RlimitKinds are those that a definition may set.
func RlimitKinds() (kinds []RlimitKind) {
	for k := range rlimits {
		if RlimitKind(k).refusal() == nil {
			kinds = append(kinds, RlimitKind(k))
		}
	}
	return kinds
}

// refusal tells why k can not be set among the others, or nil.
func (k RlimitKind) refusal() error {
	if k == RlimitNoFile {
		return fmt.Errorf("nofile is a limit of its own: write limits.nofile")
	}
	return nil
}

// ParseRlimitKind finds a limit by its name.
func ParseRlimitKind(name string) (RlimitKind, error) {
	var known []string
	for k, row := range rlimits {
		kind := RlimitKind(k)
		if row.name == name {
			return kind, kind.refusal()
		}
		if kind.refusal() == nil {
			known = append(known, row.name)
		}
	}
	return 0, fmt.Errorf("%.40q is none of %s", name, strings.Join(known, ", "))
}

// Parse reads a limit of k: bytes as ParseSize does, or a whole number, or "max"; one
// for both, or SOFT:HARD. Those of cpu are seconds, those of rttime microseconds.
func (k RlimitKind) Parse(text string) (Rlimit, error) {
	soft, hard, two := strings.Cut(text, ":")
	if !two {
		hard = soft
	}
	l := Rlimit{Kind: k}
	var err error
	if l.Soft, err = k.number(soft); err == nil {
		l.Hard, err = k.number(hard)
	}
	if err == nil && l.Soft > l.Hard {
		err = fmt.Errorf("%s is %s, and the hard limit is less", k, text)
	}
	return l, err
}

func (k RlimitKind) number(text string) (uint64, error) {
	if text == "max" {
		return Unlimited, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if rlimits[k].bytes {
		n, err = ParseSize(text)
	} else if err != nil {
		err = fmt.Errorf("%.40q is not a whole number", text)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", k, err)
	}
	const high = 1 << 60
	if n > high {
		return 0, fmt.Errorf("%s is %s; the range is 0 to %s, or max", k, text, k.format(high))
	}
	return n, nil
}

func (k RlimitKind) format(n uint64) string {
	switch {
	case n == Unlimited:
		return "max"
	case rlimits[k].bytes:
		return FormatSize(n)
	}
	return strconv.FormatUint(n, 10)
}

// Value is the limit as Parse reads it.
func (l Rlimit) Value() string {
	if l.Soft == l.Hard {
		return l.Kind.format(l.Soft)
	}
	return l.Kind.format(l.Soft) + ":" + l.Kind.format(l.Hard)
}

// ParseRlimits reads NAME=VALUE for each limit, with blanks between. They come back in
// the order of their names, each named once.
func ParseRlimits(text string) ([]Rlimit, error) {
	var list []Rlimit
	for word := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(word, "=")
		kind, err := ParseRlimitKind(name)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list, func(l Rlimit) bool { return l.Kind == kind }) {
			return nil, fmt.Errorf("%s is named twice", kind)
		}
		l, err := kind.Parse(value)
		if err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	sortRlimits(list)
	return list, nil
}

func sortRlimits(list []Rlimit) {
	slices.SortFunc(list, func(a, b Rlimit) int { return cmp.Compare(a.Kind.String(), b.Kind.String()) })
}

// OfRlimits is a Quota of list, Unlimited if that is empty.
func OfRlimits(list []Rlimit) Quota {
	if len(list) == 0 {
		return Of(Unlimited)
	}
	sortRlimits(list)
	words := make([]string, len(list))
	for i, l := range list {
		words[i] = l.Kind.String() + "=" + l.Value()
	}
	return OfText(strings.Join(words, " "))
}

// OfProcesses lists the limits of l that each process has of its own, NoFile among them.
func (l Limits) OfProcesses() []Rlimit {
	list, _ := ParseRlimits(l[Rlimits].Text) // has passed Check
	if files := l[NoFile]; files.Set {
		list = append(list, Rlimit{RlimitNoFile, files.Value, files.Value})
	}
	return list
}
