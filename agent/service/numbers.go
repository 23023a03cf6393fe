package service

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Numbers is a set of CPUs or of memory nodes: spans in order that neither touch nor
// overlap. The zero value holds none.
type Numbers []Span

// Span is the numbers from First to Last.
type Span struct{ First, Last int }

// maxNumber is the highest CPU that a kernel can be built for (NR_CPUS).
const maxNumber = 8191

var errNumbers = errors.New(`write numbers and spans of them, such as "0-3,8"`)

// ParseNumbers reads a list as cpuset(7) describes it, "0-3,8", in any order and with
// overlaps; there is no more than maxNumber. An empty text holds none.
func ParseNumbers(text string) (Numbers, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var spans Numbers
	for part := range strings.SplitSeq(text, ",") {
		first, last, isSpan := strings.Cut(strings.TrimSpace(part), "-")
		if !isSpan {
			last = first
		}
		if part = strings.TrimSpace(part); isSpan && (first == "" || last == "") {
			return nil, fmt.Errorf("%.40q lacks an end; %w", part, errNumbers)
		}
		from, err := parseNumber(first)
		if err != nil {
			return nil, err
		}
		to, err := parseNumber(last)
		if err != nil {
			return nil, err
		}
		if from > to {
			return nil, fmt.Errorf("%d-%d ends before it begins", from, to)
		}
		spans = append(spans, Span{from, to})
	}
	return spans.Joined(), nil
}

func parseNumber(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a number; %w", text, errNumbers)
	}
	if n > maxNumber {
		return 0, fmt.Errorf("%d is more than %d, the highest there can be", n, maxNumber)
	}
	return int(n), nil
}

// Joined makes Numbers of spans in any order, which may touch and overlap; n is spent.
func (n Numbers) Joined() Numbers {
	slices.SortFunc(n, func(a, b Span) int { return cmp.Compare(a.First, b.First) })
	out := n[:0]
	for _, s := range n {
		if end := len(out) - 1; end >= 0 && s.First <= out[end].Last+1 {
			out[end].Last = max(out[end].Last, s.Last)
			continue
		}
		out = append(out, s)
	}
	return out
}

// String is n as the kernel writes it.
func (n Numbers) String() string {
	parts := make([]string, len(n))
	for i, s := range n {
		parts[i] = strconv.Itoa(s.First)
		if s.Last > s.First {
			parts[i] += "-" + strconv.Itoa(s.Last)
		}
	}
	return strings.Join(parts, ",")
}

// Has tells whether n holds i.
func (n Numbers) Has(i int) bool {
	return slices.ContainsFunc(n, func(s Span) bool { return s.First <= i && i <= s.Last })
}

// Count is how many n holds.
func (n Numbers) Count() (count int) {
	for _, s := range n {
		count += s.Last - s.First + 1
	}
	return count
}

// Without is what n holds and other does not.
func (n Numbers) Without(other Numbers) Numbers {
	var out Numbers
	for _, s := range n {
		for i := s.First; i <= s.Last; i++ {
			if !other.Has(i) {
				out = append(out, Span{i, i})
			}
		}
	}
	return out.Joined()
}

// Mask is n with one bit for each number, the lowest first in each byte, in as few
// bytes as hold it.
func (n Numbers) Mask() []byte {
	if len(n) == 0 {
		return []byte{}
	}
	mask := make([]byte, n[len(n)-1].Last/8+1)
	for _, s := range n {
		for i := s.First; i <= s.Last; i++ {
			mask[i/8] |= 1 << (i % 8)
		}
	}
	return mask
}
