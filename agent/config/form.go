package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
)

// form is how values of type V are written in JSON.
type form[V any] interface {
	// read sets *v, the field at path, from n, or notes what is wrong with n.
	read(d *document, path string, n *node, v *V)
	// write is the JSON value of v, nil when the key is left out.
	write(v V) any
	// schema describes the JSON; def is the value of a key that is left out.
	schema(def V) *jsonschema.Schema
}

// object is the form of a T whose parts are keys of a JSON object.
type object[T any] struct {
	keys   []key[T]
	absent func(T) bool                                  // the object itself is left out
	check  func(d *document, path string, n *node, v *T) // rules over several keys
	rules  func(s *jsonschema.Schema)                    // the same in the schema
}

// key is one key of an object that fills a T.
type key[T any] struct {
	name     string
	required bool
	read     func(d *document, path string, n *node, v *T)
	write    func(v T) any
	schema   func(def T) *jsonschema.Schema
}

// at makes a key from the form of its value and the place of that value in T.
// About describes it for people; it ends up in the schema.
func at[T, V any, F form[V]](name, about string, f F, place func(*T) *V) key[T] {
	return key[T]{
		name:  name,
		read:  func(d *document, path string, n *node, v *T) { f.read(d, path, n, place(v)) },
		write: func(v T) any { return f.write(*place(&v)) },
		schema: func(def T) *jsonschema.Schema {
			s := f.schema(*place(&def))
			s.Description = about
			if value := f.write(*place(&def)); value != nil && s.Type != isObject.schemaType() {
				s.Default = mustJSON(value)
			}
			return s
		},
	}
}

// needed marks a key without which a document is not valid. Whoever validates
// the whole says so; this is for the schema.
func (k key[T]) needed() key[T] {
	k.required = true
	return k
}

func (o object[T]) read(d *document, path string, n *node, v *T) {
	if !d.want(n, path, isObject) {
		return
	}
	for p := range d.pairs(path, n) {
		field := join(path, p.key)
		i := slices.IndexFunc(o.keys, func(k key[T]) bool { return k.name == p.key })
		if i < 0 {
			d.fault(p.offset, field, "is not a known key%s", hint(p.key, o.names()))
			continue
		}
		o.keys[i].read(d, field, p.value, v)
	}
	if o.check != nil {
		o.check(d, path, n, v)
	}
}

func (o object[T]) write(v T) any {
	if o.absent != nil && o.absent(v) {
		return nil
	}
	out := ordered{}
	for _, k := range o.keys {
		if value := k.write(v); value != nil {
			out = append(out, entry{k.name, value})
		}
	}
	return out
}

func (o object[T]) schema(def T) *jsonschema.Schema {
	s := &jsonschema.Schema{
		Type:                 isObject.schemaType(),
		Properties:           map[string]*jsonschema.Schema{},
		AdditionalProperties: &jsonschema.Schema{Not: &jsonschema.Schema{}},
		PropertyOrder:        o.names(),
	}
	for _, k := range o.keys {
		s.Properties[k.name] = k.schema(def)
		if k.required {
			s.Required = append(s.Required, k.name)
		}
	}
	if o.rules != nil {
		o.rules(s)
	}
	return s
}

func (o object[T]) names() []string {
	names := make([]string, len(o.keys))
	for i, k := range o.keys {
		names[i] = k.name
	}
	return names
}

// differ lists the fields in which a and b differ, as paths.
func (o object[T]) differ(path string, a, b T) []string {
	return differ(path, o.write(a), o.write(b))
}

func differ(path string, a, b any) []string {
	left, leftIs := a.(ordered)
	right, rightIs := b.(ordered)
	if !leftIs || !rightIs {
		if bytes.Equal(mustJSON(a), mustJSON(b)) {
			return nil
		}
		return []string{path}
	}
	var fields []string
	for _, e := range left {
		fields = append(fields, differ(join(path, e.key), e.value, right.get(e.key))...)
	}
	for _, e := range right {
		if left.get(e.key) == nil {
			fields = append(fields, join(path, e.key))
		}
	}
	return fields
}

// pairs are the keys of n and their values. A repeated key is a fault, and only
// the first is given. The places of all are remembered.
func (d *document) pairs(path string, n *node) iter.Seq[pair] {
	return func(yield func(pair) bool) {
		first := map[string]int{}
		for _, p := range n.pairs {
			field := join(path, p.key)
			if offset, repeated := first[p.key]; repeated {
				line, column := d.position(offset)
				d.fault(p.offset, field, "is given twice; first in line %d, column %d", line, column)
				continue
			}
			first[p.key] = p.offset
			d.places[field] = p.value.offset
			if !yield(p) {
				return
			}
		}
	}
}

// has tells whether the object n has the key, and where.
func (n *node) has(key string) (offset int, ok bool) {
	i := slices.IndexFunc(n.pairs, func(p pair) bool { return p.key == key })
	if i < 0 {
		return 0, false
	}
	return n.pairs[i].offset, true
}

// holds tells whether the object n has an object under key that has the other.
func (n *node) holds(key, other string) bool {
	i := slices.IndexFunc(n.pairs, func(p pair) bool { return p.key == key })
	if i < 0 {
		return false
	}
	_, ok := n.pairs[i].value.has(other)
	return ok
}

// want tells whether n is of kind k, and notes a fault when it is not.
func (d *document) want(n *node, path string, k kind) bool {
	if n.kind == k {
		return true
	}
	if n.kind == isNull {
		d.fault(n.offset, path, "is null; it wants %s, or leave the key out", kindNames[k])
	} else {
		d.fault(n.offset, path, "is %s; it wants %s", kindNames[n.kind], kindNames[k])
	}
	return false
}

func (k kind) schemaType() string {
	return [...]string{"null", "boolean", "number", "string", "array", "object"}[k]
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// ordered is a JSON object whose keys keep their order.
type ordered []entry

type entry struct {
	key   string
	value any
}

func (o ordered) get(key string) any {
	i := slices.IndexFunc(o, func(e entry) bool { return e.key == key })
	if i < 0 {
		return nil
	}
	return o[i].value
}

// MarshalJSON makes encoding/json write o.
func (o ordered) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, e := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(mustJSON(e.key))
		b.WriteByte(':')
		b.Write(mustJSON(e.value))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// mustJSON writes v, which is made of strings, finite numbers, booleans, lists
// and maps of them; it panics on anything else. & < > stay as they are.
func mustJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// pretty is v as a document for people.
func pretty(v any) []byte {
	var b bytes.Buffer
	if err := json.Indent(&b, mustJSON(v), "", "  "); err != nil {
		panic(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// hint names the known key that somebody may have meant.
func hint(key string, known []string) string {
	plain := strings.NewReplacer("_", "", "-", "", " ", "")
	best, least := "", max(1, len(key)/3)+1
	for _, k := range known {
		if strings.EqualFold(plain.Replace(k), plain.Replace(key)) {
			best, least = k, 0
		} else if n := distance(key, k); n < least {
			best, least = k, n
		}
	}
	if best == "" {
		return "; known are " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance counts the letters to add, drop, change or swap with a neighbour to
// get from a to b (optimal string alignment). Long words are merely far apart.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
