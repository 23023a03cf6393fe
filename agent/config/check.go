package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

var readiness = object[service.Check]{
	keys: append(target(append(slices.Clone(checkTypes), service.CheckLog, service.CheckNotify), "; log: a line of its output matches pattern; notify: it says READY=1 (sd_notify(3)) to the socket that NOTIFY_SOCKET names"),
		at("settle", "process: how long it has to have run to be ready; an end before is a failed start.",
			optionalDuration{duration{0, 24 * time.Hour}}, func(c *service.Check) *time.Duration { return &c.Settle }),
		at("pattern", "log: what a line has to match, in the syntax of RE2. The first 16 KiB of a line are looked at.",
			text{max: 1024, line: true}, func(c *service.Check) *string { return &c.Pattern }),
		at("timeout", "How long a start may take. Of a oneshot: how long its job may take, which is as long as it likes when this is left out.",
			duration{time.Millisecond, 24 * time.Hour}, func(c *service.Check) *time.Duration { return &c.Timeout }),
	),
	check: matchTarget(readyUsers),
	rules: targetRules(readyUsers),
}

var health = object[service.Check]{
	keys: append(target(append(slices.Clone(checkTypes), service.CheckWatchdog), "; watchdog: it says WATCHDOG=1 (sd_notify(3)) in every interval, which WATCHDOG_USEC tells it"),
		asked(at("interval", "From one check to the next, give or take a tenth.",
			duration{100 * time.Millisecond, 24 * time.Hour}, func(c *service.Check) *time.Duration { return &c.Interval })),
		asked(at("timeout", "How long an answer may take.",
			duration{10 * time.Millisecond, time.Hour}, func(c *service.Check) *time.Duration { return &c.Timeout })),
		asked(at("threshold", "Failures in a row that make the service unhealthy.",
			whole[int]{low: 1, high: 1000}, func(c *service.Check) *int { return &c.Threshold })),
		asked(at("success_threshold", "Successes in a row that make it healthy.",
			whole[int]{low: 1, high: 1000}, func(c *service.Check) *int { return &c.SuccessThreshold })),
		asked(at("start_period", "How long failures do not count after the service is ready, unless it has been healthy meanwhile.",
			optionalDuration{duration{0, 24 * time.Hour}}, func(c *service.Check) *time.Duration { return &c.StartPeriod })),
	),
	check: matchTarget(healthUsers),
	rules: targetRules(healthUsers),
}

// asked is a key that says nothing where nobody is asked, as with type process: the
// kernel tells of the end by itself.
func asked(k key[service.Check]) key[service.Check] {
	write := k.write
	k.write = func(c service.Check) any {
		if !slices.Contains(healthUsers[k.name], c.Type) {
			return nil
		}
		return write(c)
	}
	return k
}

// checkTypes are those that tell both whether a service is ready and whether it is well.
var checkTypes = []service.CheckType{service.CheckProcess, service.CheckHTTP, service.CheckGRPC, service.CheckTCP, service.CheckExec}

// target is what the two checks have in common; about tells of types that one alone has.
func target(types []service.CheckType, about string) []key[service.Check] {
	return []key[service.Check]{
		at("type", "process: it runs; http: GET url answers as it is to; grpc: grpc.health.v1 at address answers SERVING; tcp: address accepts; exec: a program beside it ends well"+about+".",
			word[service.CheckType]{values: types},
			func(c *service.Check) *service.CheckType { return &c.Type }),
		at("url", "http: what to GET. Redirects are not followed.",
			text{form: regexp.MustCompile("^https?://"), say: "an http or https address"}, func(c *service.Check) *string { return &c.URL }),
		at("status", "http: the status of an answer that is well: 200 when left out.",
			statuses{}, func(c *service.Check) *[]service.StatusRange { return &c.Status }),
		at("body", "http: what the first 64 KiB of the answer have to match, in the syntax of RE2.",
			text{max: 1024, line: true}, func(c *service.Check) *string { return &c.Body }),
		at("address", "grpc, tcp: host:port.",
			text{form: regexp.MustCompile("^.+:[^:]+$"), say: "host:port"}, func(c *service.Check) *string { return &c.Address }),
		at("service", "grpc: the service name to ask for; the whole server when left out.",
			text{max: 1024, line: true}, func(c *service.Check) *string { return &c.Service }),
		at("tls", "http with https, grpc: whose certificate is believed; grpc speaks TLS only with this, be it {}.",
			pointer[service.TLS]{security}, func(c *service.Check) **service.TLS { return &c.TLS }),
		at("remote", "http, grpc, tcp: other hosts may be asked; else the loopback of this one alone.",
			unlessFalse{}, func(c *service.Check) *bool { return &c.Remote }),
		at("exec", "exec: the program's absolute path, then its arguments. It runs as the service does, in its cgroup.",
			texts{min: 1, first: &jsonschema.Schema{Type: "string", Pattern: "^/"}}, func(c *service.Check) *[]string { return &c.Exec }),
	}
}

var security = object[service.TLS]{keys: []key[service.TLS]{
	at("ca", "File of the certificates to trust (PEM); those that the host trusts when left out. It is read at each check.",
		text{form: regexp.MustCompile("^/"), say: "an absolute path"}, func(t *service.TLS) *string { return &t.CA }),
	at("server_name", "Name that the certificate has to be for; the host that is asked when left out.",
		text{max: 253, line: true}, func(t *service.TLS) *string { return &t.ServerName }),
	at("insecure", "Believe whoever answers.",
		unlessFalse{}, func(t *service.TLS) *bool { return &t.Insecure }),
}}

// statuses are status codes of HTTP: a number, or a list of numbers and ranges.
type statuses struct{}

func (f statuses) read(d *document, path string, n *node, v *[]service.StatusRange) {
	list := []*node{n}
	if n.kind == isArray {
		if list = n.items; len(list) == 0 {
			d.fault(n.offset, path, "is empty; leave it out for 200, or name a status that is well")
		}
	}
	var all []service.StatusRange
	for i, item := range list {
		field := path
		if n.kind == isArray {
			field = fmt.Sprintf("%s[%d]", path, i)
			d.places[field] = item.offset
		}
		if item.kind != isNumber && item.kind != isText {
			d.fault(item.offset, field, `is %s; it wants a status such as 200, or a list of such and ranges like "200-299"`, kindNames[item.kind])
			continue
		}
		r, err := service.ParseStatusRange(item.text)
		if err != nil {
			d.fault(item.offset, field, "%v", err)
			continue
		}
		all = append(all, r)
	}
	*v = all
}

func (statuses) write(v []service.StatusRange) any {
	if len(v) == 0 {
		return nil
	}
	list := make([]any, len(v))
	for i, r := range v {
		if list[i] = r.String(); r.Low == r.High {
			list[i] = r.Low
		}
	}
	return list
}

func (statuses) schema([]service.StatusRange) *jsonschema.Schema {
	number := &jsonschema.Schema{Type: "integer", Minimum: jsonschema.Ptr(200.0), Maximum: jsonschema.Ptr(599.0)}
	span := &jsonschema.Schema{Type: "string", Pattern: "^[2-5][0-9]{2}(-[2-5][0-9]{2})?$"}
	one := []*jsonschema.Schema{number, span}
	return &jsonschema.Schema{AnyOf: append(slices.Clone(one), &jsonschema.Schema{
		Type: "array", MinItems: jsonschema.Ptr(1), MaxItems: jsonschema.Ptr(16), Items: &jsonschema.Schema{AnyOf: one},
	})}
}

// pointer is an object that may be left out.
type pointer[T any] struct{ object[T] }

func (p pointer[T]) read(d *document, path string, n *node, v **T) {
	*v = new(T)
	p.object.read(d, path, n, *v)
}

func (p pointer[T]) write(v *T) any {
	if v == nil {
		return nil
	}
	return p.object.write(*v)
}

func (p pointer[T]) schema(*T) *jsonschema.Schema { return p.object.schema(*new(T)) }

// unlessFalse is true or false, and false when the key is left out.
type unlessFalse struct{ yesNo }

func (b unlessFalse) write(v bool) any {
	if !v {
		return nil
	}
	return true
}

// users are the types of check that each key belongs to; other keys belong to
// all.
var (
	users = map[string][]service.CheckType{
		"url":     {service.CheckHTTP},
		"status":  {service.CheckHTTP},
		"body":    {service.CheckHTTP},
		"address": {service.CheckGRPC, service.CheckTCP},
		"service": {service.CheckGRPC},
		"tls":     {service.CheckHTTP, service.CheckGRPC},
		"remote":  {service.CheckHTTP, service.CheckGRPC, service.CheckTCP},
		"exec":    {service.CheckExec},
	}
	readyUsers = with(users, map[string][]service.CheckType{
		"settle":  {service.CheckProcess},
		"pattern": {service.CheckLog},
	})
	asking      = []service.CheckType{service.CheckHTTP, service.CheckGRPC, service.CheckTCP, service.CheckExec}
	healthUsers = with(users, map[string][]service.CheckType{
		"interval": append(slices.Clone(asking), service.CheckWatchdog), "timeout": asking, "threshold": asking, "success_threshold": asking, "start_period": asking,
	})
)

func with(users, more map[string][]service.CheckType) map[string][]service.CheckType {
	all := maps.Clone(users)
	maps.Copy(all, more)
	return all
}

// targets are the keys without which the types they belong to ask nobody.
var targets = []string{"url", "address", "exec", "pattern"}

// matchTarget finds keys that the type of a check does not use, and those it
// lacks.
func matchTarget(users map[string][]service.CheckType) func(*document, string, *node, *service.Check) {
	return func(d *document, path string, n *node, c *service.Check) {
		if d.faulty(join(path, "type")) {
			return
		}
		for name, types := range users {
			used := slices.Contains(types, c.Type)
			offset, given := n.has(name)
			switch {
			case given && !used:
				d.fault(offset, join(path, name), "belongs to type %s; the type here is %s", alternatives(types), c.Type)
			case used && !given && slices.Contains(targets, name):
				d.fault(n.offset, join(path, name), "is required by type %s", c.Type)
			}
		}
	}
}

func alternatives(types []service.CheckType) string {
	words := make([]string, len(types))
	for i, t := range types {
		words[i] = t.String()
	}
	return strings.Join(words, " or ")
}

// targetRules says in the schema what matchTarget says.
func targetRules(users map[string][]service.CheckType) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) {
		s.DependentSchemas = map[string]*jsonschema.Schema{}
		for name, types := range users {
			s.DependentSchemas[name] = typeIs(types)
			if slices.Contains(types, service.CheckProcess) { // which is the type when none is given
				s.DependentSchemas[name].Required = nil
			}
		}
		for _, name := range targets {
			if len(users[name]) == 0 {
				continue
			}
			s.AllOf = append(s.AllOf, &jsonschema.Schema{If: typeIs(users[name]), Then: &jsonschema.Schema{Required: []string{name}}})
		}
	}
}

func typeIs(types []service.CheckType) *jsonschema.Schema {
	one := &jsonschema.Schema{}
	for _, t := range types {
		one.Enum = append(one.Enum, t.String())
	}
	return &jsonschema.Schema{Properties: map[string]*jsonschema.Schema{"type": one}, Required: []string{"type"}}
}
