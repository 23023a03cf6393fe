package config

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Caps on a document.
const (
	maxBytes  = 1 << 20
	maxDepth  = 16
	maxValues = 10_000 // a definition at all its limits has fewer
)

type kind uint8

const (
	isNull kind = iota
	isBool
	isNumber
	isText
	isArray
	isObject
)

var kindNames = [...]string{"null", "true or false", "a number", "a string", "an array", "an object"}

// node is one JSON value and the place where it stands.
type node struct {
	kind   kind
	offset int
	text   string  // what a string says; a number, true or false as written
	items  []*node // of an array
	pairs  []pair  // of an object, in order, repeated keys too
}

type pair struct {
	key    string
	offset int // of the key
	value  *node
}

// scanner reads JSON as RFC 8259 has it. It is our own, since encoding/json
// replaces invalid UTF-8, takes the last of repeated keys and forgets places.
type scanner struct {
	doc    *document
	data   []byte
	pos    int
	depth  int
	values int
}

// scan reads the whole document; on a fault, which it notes, it returns nil.
func scan(d *document) *node {
	s := &scanner{doc: d, data: d.data}
	if !s.checkEncoding() {
		return nil
	}
	s.space()
	if s.pos == len(s.data) {
		return s.fail(s.pos, "is empty; a JSON object is wanted")
	}
	root := s.value()
	if root == nil {
		return nil
	}
	if s.space(); s.pos < len(s.data) {
		if s.comment() {
			return nil
		}
		return s.fail(s.pos, "there is more after the end of the document")
	}
	return root
}

func (s *scanner) fail(offset int, format string, args ...any) *node {
	s.doc.fault(offset, "", format, args...)
	return nil
}

func (s *scanner) checkEncoding() bool {
	switch {
	case len(s.data) > maxBytes:
		s.fail(0, "has more than %d bytes", maxBytes)
		return false
	case bytes.HasPrefix(s.data, []byte("\xEF\xBB\xBF")):
		s.fail(0, "begins with a byte order mark (BOM); save it as UTF-8 without one")
		return false
	case bytes.HasPrefix(s.data, []byte("\xFF\xFE")), bytes.HasPrefix(s.data, []byte("\xFE\xFF")):
		s.fail(0, "is UTF-16; save it as UTF-8")
		return false
	}
	for i := 0; i < len(s.data); {
		r, size := utf8.DecodeRune(s.data[i:])
		if r == utf8.RuneError && size == 1 {
			s.fail(i, "byte %#02x is not valid UTF-8", s.data[i])
			return false
		}
		i += size
	}
	return true
}

func (s *scanner) space() {
	for s.pos < len(s.data) && strings.IndexByte(" \t\r\n", s.data[s.pos]) >= 0 {
		s.pos++
	}
}

// peek is the next byte that is no space, 0 at the end.
func (s *scanner) peek() byte {
	s.space()
	if s.pos == len(s.data) {
		return 0
	}
	return s.data[s.pos]
}

// comment tells whether a comment stands here, which is a fault.
func (s *scanner) comment() bool {
	if c := s.peek(); c != '/' && c != '#' {
		return false
	}
	s.fail(s.pos, "JSON has no comments")
	return true
}

func (s *scanner) value() *node {
	c := s.peek()
	if s.values++; s.values > maxValues {
		return s.fail(s.pos, "has more than %d values", maxValues)
	}
	switch c {
	case '{', '[':
		if s.depth++; s.depth > maxDepth {
			return s.fail(s.pos, "is nested deeper than %d levels", maxDepth)
		}
		defer func() { s.depth-- }()
		if c == '{' {
			return s.object()
		}
		return s.array()
	case '"':
		n := &node{kind: isText, offset: s.pos}
		text, ok := s.str()
		if !ok {
			return nil
		}
		n.text = text
		return n
	}
	return s.word()
}

func (s *scanner) object() *node {
	n := &node{kind: isObject, offset: s.pos}
	s.pos++
	if s.peek() == '}' {
		s.pos++
		return n
	}
	for {
		p, ok := s.pair()
		if !ok {
			return nil
		}
		n.pairs = append(n.pairs, p)
		if more, ok := s.next(n, '}'); !ok {
			return nil
		} else if !more {
			return n
		}
	}
}

func (s *scanner) pair() (pair, bool) {
	if c := s.peek(); c != '"' {
		s.unexpected("a key in double quotes")
		return pair{}, false
	}
	p := pair{offset: s.pos}
	var ok bool
	if p.key, ok = s.str(); !ok {
		return pair{}, false
	}
	if s.peek() != ':' {
		s.unexpected("a colon after the key " + strconv.Quote(cut(p.key, 40)))
		return pair{}, false
	}
	s.pos++
	p.value = s.value()
	return p, p.value != nil
}

func (s *scanner) array() *node {
	n := &node{kind: isArray, offset: s.pos}
	s.pos++
	if s.peek() == ']' {
		s.pos++
		return n
	}
	for {
		item := s.value()
		if item == nil {
			return nil
		}
		n.items = append(n.items, item)
		if more, ok := s.next(n, ']'); !ok {
			return nil
		} else if !more {
			return n
		}
	}
}

// next reads what follows an entry of n: a comma, which means more, or end.
func (s *scanner) next(n *node, end byte) (more, ok bool) {
	switch s.peek() {
	case end:
		s.pos++
		return false, true
	case ',':
		comma := s.pos
		s.pos++
		if c := s.peek(); c == '}' || c == ']' {
			s.fail(comma, "a comma before %q is not allowed", c)
			return false, false
		}
		return true, true
	case 0:
		line, _ := s.doc.position(n.offset)
		s.fail(s.pos, "the document ends inside of %s that began in line %d", kindNames[n.kind], line)
		return false, false
	}
	s.unexpected("a comma or " + strconv.QuoteRune(rune(end)))
	return false, false
}

func (s *scanner) unexpected(wanted string) {
	if s.comment() {
		return
	}
	if s.peek() == 0 {
		s.fail(s.pos, "the document ends where %s is wanted", wanted)
		return
	}
	r, _ := utf8.DecodeRune(s.data[s.pos:])
	s.fail(s.pos, "%s is wanted here, not %q", wanted, r)
}

var (
	wordForm   = regexp.MustCompile(`^[\pL\pN_+.%-]+`)
	numberForm = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)
)

// word reads a number, true, false or null, and has a hint for what people
// write instead.
func (s *scanner) word() *node {
	start := s.pos
	word := string(wordForm.Find(s.data[start:]))
	if word == "" {
		s.unexpected("a value")
		return nil
	}
	s.pos += len(word)
	n := &node{offset: start, text: word}
	switch {
	case word == "null":
		n.kind = isNull
		return n
	case word == "true" || word == "false":
		n.kind = isBool
		return n
	case numberForm.MatchString(word):
		n.kind = isNumber
		return n
	}
	switch lower := strings.ToLower(word); {
	case lower == "true" || lower == "false" || lower == "null":
		return s.fail(start, "%s is not JSON; write %s", word, lower)
	case strings.Trim(lower, "+-") == "nan" || strings.HasPrefix(strings.Trim(lower, "+-"), "inf"):
		return s.fail(start, "%s is not JSON, which has finite numbers only", word)
	case strings.Trim(lower, "0123456789.+-") == "":
		return s.fail(start, "%s is not a number as JSON has it: no leading zero or plus, digits around the point", word)
	}
	return s.fail(start, "%s is neither a number nor true, false or null; a string is written in double quotes", word)
}

// str reads a string, the opening quote of which is next.
func (s *scanner) str() (string, bool) {
	start := s.pos
	var b strings.Builder
	for s.pos++; s.pos < len(s.data); {
		switch c := s.data[s.pos]; {
		case c == '"':
			s.pos++
			return b.String(), true
		case c == '\\':
			r, ok := s.escape()
			if !ok {
				return "", false
			}
			b.WriteRune(r)
		case c == '\n' || c == '\r':
			s.fail(start, `a string ends in the line it began in; a line break inside is written \n`)
			return "", false
		case c < ' ':
			s.fail(s.pos, `the control character %#02x is written \u%04x inside of a string`, c, c)
			return "", false
		default:
			b.WriteByte(c)
			s.pos++
		}
	}
	s.fail(start, "a string begins here and has no end")
	return "", false
}

var simpleEscapes = map[byte]rune{
	'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t',
}

// escape reads a backslash and what follows it: a letter, or \u and four digits,
// twice for a character beyond U+FFFF.
func (s *scanner) escape() (rune, bool) {
	start := s.pos
	if s.pos+1 < len(s.data) {
		if r, ok := simpleEscapes[s.data[s.pos+1]]; ok {
			s.pos += 2
			return r, true
		}
	}
	r, ok := s.unicodeEscape()
	if ok && utf16.IsSurrogate(r) {
		var low rune
		if low, ok = s.unicodeEscape(); ok {
			r = utf16.DecodeRune(r, low)
			ok = r != utf8.RuneError
		}
		if !ok {
			s.fail(start, "half of a UTF-16 surrogate pair stands for no character")
			return 0, false
		}
	}
	if !ok {
		s.fail(start, `after a backslash comes one of " \ / b f n r t, or u and four hexadecimal digits`)
	}
	return r, ok
}

func (s *scanner) unicodeEscape() (rune, bool) {
	if s.pos+6 > len(s.data) || s.data[s.pos] != '\\' || s.data[s.pos+1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s.data[s.pos+2:s.pos+6]), 16, 16)
	if err != nil {
		return 0, false
	}
	s.pos += 6
	return rune(n), true
}
