package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// quota is the limit of one resource.
type quota struct{ resource service.Resource }

func (f quota) bytes() bool { return f.resource.Unit() == service.Bytes }

func (f quota) percent() bool { return f.resource.Unit() == service.Percent }

func (f quota) list() bool { return f.resource.Unit() == service.List }

func (f quota) yesNo() bool { return f.resource.Unit() == service.YesNo }

func (f quota) read(d *document, path string, n *node, v *service.Quota) {
	q, err := f.parse(n)
	if err == nil {
		err = f.resource.Check(q)
	}
	if err != nil {
		// The place says which limit it is.
		message := strings.TrimPrefix(err.Error(), f.resource.String())
		d.fault(n.offset, path, "%s", strings.TrimLeft(message, ": "))
		return
	}
	*v = q
}

func (f quota) parse(n *node) (service.Quota, error) {
	switch {
	case n.kind == isText && n.text == "max":
		return service.Of(service.Unlimited), nil
	case n.kind == isText && f.bytes():
		size, err := service.ParseSize(n.text)
		return service.Of(size), err
	case f.yesNo() && n.kind == isBool:
		return f.resource.Parse(n.text)
	case f.list() && n.kind == isText:
		return f.resource.Parse(n.text)
	case f.yesNo(), f.list():
	case n.kind == isNumber && f.percent():
		percent, err := strconv.ParseFloat(n.text, 64)
		if err != nil {
			return service.Quota{}, fmt.Errorf("is %s; that is more than any machine has", n.text)
		}
		return f.resource.OfPercent(percent)
	case n.kind == isNumber:
		i, err := strconv.ParseUint(n.text, 10, 64)
		if err != nil || i == service.Unlimited {
			low, high, _ := f.resource.Range()
			return service.Quota{}, fmt.Errorf("is %s; it wants a whole number, the range is %s to %s",
				n.text, f.resource.Format(service.Of(low)), f.resource.Format(service.Of(high)))
		}
		return service.Of(i), nil
	}
	return service.Quota{}, fmt.Errorf("is %s; it wants %s", f.show(n), f.wants())
}

func (f quota) show(n *node) string {
	if n.kind == isText {
		return fmt.Sprintf("the string %.100q", n.text)
	}
	return kindNames[n.kind]
}

func (f quota) wants() string {
	switch {
	case f.bytes():
		return `bytes as a whole number or a string such as "256MiB", or "max" for no limit`
	case f.yesNo():
		return "true or false"
	case f.list():
		return `a string of numbers and spans of them, such as "0-3,8", or "max" for all`
	case f.resource == service.CPUMax:
		return `a number, percent of one core, or "max" for no limit`
	case f.percent():
		return "a number, percent of one core"
	}
	if _, _, unlimited := f.resource.Range(); unlimited {
		return `a whole number, or "max" for no limit`
	}
	return "a whole number"
}

func (f quota) write(q service.Quota) any {
	switch {
	case !q.Set:
		return nil
	case q.Value == service.Unlimited:
		return "max"
	case f.list():
		return q.Text
	case f.yesNo():
		return q.Value != 0
	case f.percent():
		return plainNumber(q.Percent())
	case f.bytes() && q.Value > 0 && q.Value%(1<<10) == 0:
		return service.FormatSize(q.Value)
	}
	return q.Value
}

func (f quota) schema(service.Quota) *jsonschema.Schema {
	if f.yesNo() {
		return &jsonschema.Schema{Type: "boolean"}
	}
	if f.list() {
		return &jsonschema.Schema{Type: "string", Pattern: `^(max|[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)$`}
	}
	low, high, unlimited := f.resource.Range()
	n := &jsonschema.Schema{Type: "integer", Minimum: jsonschema.Ptr(float64(low)), Maximum: jsonschema.Ptr(float64(high))}
	if f.percent() {
		n.Type, *n.Minimum, *n.Maximum = "number", service.Of(low).Percent(), service.Of(high).Percent()
	}
	switch {
	case f.bytes():
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{n, {Type: "string", Pattern: `^(max|[0-9]+(KiB|MiB|GiB|TiB)?)$`}}}
	case unlimited:
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{n, {Type: "string", Enum: []any{"max"}}}}
	}
	return n
}
