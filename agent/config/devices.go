package config

import (
	"fmt"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// devices are limits of disks: an array of objects with a device and its rates.
type devices struct{ resource service.Resource }

const deviceKey = "device"

func (f devices) read(d *document, path string, n *node, v *service.Quota) {
	if n.kind == isText && n.text == "max" {
		*v = service.Of(service.Unlimited)
		return
	}
	if !d.want(n, path, isArray) {
		return
	}
	before := len(d.faults)
	list := make([]service.DeviceLimit, len(n.items))
	for i, item := range n.items {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.places[field] = item.offset
		oneDevice.read(d, field, item, &list[i])
	}
	if len(d.faults) > before {
		return
	}
	for i := range list {
		for r, rate := range list[i].Rates {
			if rate == 0 { // left out
				list[i].Rates[r] = service.Unlimited
			}
		}
	}
	q, err := service.OfDevices(list)
	if err == nil && len(list) > 0 {
		err = f.resource.Check(q)
	}
	if err != nil {
		d.fault(n.offset, path, "%s", strings.TrimPrefix(err.Error(), f.resource.String()+": "))
		return
	}
	*v = q
}

func (f devices) write(q service.Quota) any {
	switch {
	case !q.Set:
		return nil
	case q.Value == service.Unlimited:
		return "max"
	}
	list, err := service.ParseDevices(q.Text)
	if err != nil {
		return nil
	}
	out := make([]any, len(list))
	for i, limit := range list {
		out[i] = oneDevice.write(limit)
	}
	return out
}

func (f devices) schema(service.Quota) *jsonschema.Schema {
	one := oneDevice.schema(service.DeviceLimit{})
	one.Required = []string{deviceKey}
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		{Type: "array", Items: one, MaxItems: jsonschema.Ptr(64)}, {Type: "string", Enum: []any{"max"}},
	}}
}

var oneDevice = object[service.DeviceLimit]{keys: []key[service.DeviceLimit]{
	at(deviceKey, "Path of a disk, of a part of it, or of a file on it; or its number, such as 8:0.",
		text{max: 1024, line: true}, func(l *service.DeviceLimit) *string { return &l.Device }).needed(),
	rateOf(service.ReadBPS, "Bytes that may be read in a second."),
	rateOf(service.WriteBPS, "Bytes that may be written in a second."),
	rateOf(service.ReadIOPS, "Operations of reading in a second."),
	rateOf(service.WriteIOPS, "Operations of writing in a second."),
}}

func rateOf(r service.Rate, about string) key[service.DeviceLimit] {
	return at(service.Rates[r], about, rate{r}, func(l *service.DeviceLimit) *uint64 { return &l.Rates[r] })
}

// rate is bytes or operations in a second.
type rate struct{ of service.Rate }

func (f rate) read(d *document, path string, n *node, v *uint64) {
	if n.kind != isNumber && (n.kind != isText || !f.of.Bytes() && n.text != "max") {
		d.want(n, path, isNumber)
		return
	}
	got, err := f.of.Parse(n.text)
	if err != nil {
		message := strings.TrimPrefix(err.Error(), service.Rates[f.of])
		d.fault(n.offset, path, "%s", strings.TrimLeft(message, ": "))
		return
	}
	*v = got
}

func (f rate) write(v uint64) any {
	switch {
	case v == 0 || v == service.Unlimited:
		return nil
	case f.of.Bytes() && v%1024 == 0:
		return service.FormatSize(v)
	}
	return v
}

func (f rate) schema(uint64) *jsonschema.Schema {
	n := &jsonschema.Schema{Type: "integer", Minimum: jsonschema.Ptr(1.0)}
	pattern := "^max$"
	if f.of.Bytes() {
		pattern = `^(max|[0-9]+(KiB|MiB|GiB|TiB)?)$`
	}
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{n, {Type: "string", Pattern: pattern}}}
}
