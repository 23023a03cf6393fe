package config

import (
	"fmt"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// several is a limit that has an array of objects for disks, or for sizes of pages.
type several[T any] struct {
	resource service.Resource
	one      object[T]
	required []string // keys of one
	most     int
	parse    func(string) ([]T, error)
	of       func([]T) (service.Quota, error)
}

func (f several[T]) read(d *document, path string, n *node, v *service.Quota) {
	if n.kind == isText && n.text == "max" {
		*v = service.Of(service.Unlimited)
		return
	}
	if !d.want(n, path, isArray) {
		return
	}
	before := len(d.faults)
	list := make([]T, len(n.items))
	for i, item := range n.items {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.places[field] = item.offset
		f.one.read(d, field, item, &list[i])
		for _, key := range f.required {
			if _, given := item.has(key); item.kind == isObject && !given {
				d.fault(item.offset, join(field, key), "is required")
			}
		}
	}
	if len(d.faults) > before {
		return
	}
	q, err := f.of(list)
	if err == nil && len(list) > 0 {
		err = f.resource.Check(q)
	}
	if err != nil {
		d.fault(n.offset, path, "%s", strings.TrimPrefix(err.Error(), f.resource.String()+": "))
		return
	}
	*v = q
}

func (f several[T]) write(q service.Quota) any {
	switch {
	case !q.Set:
		return nil
	case q.Value == service.Unlimited:
		return "max"
	}
	list, err := f.parse(q.Text)
	if err != nil {
		return nil
	}
	out := make([]any, len(list))
	for i, limit := range list {
		out[i] = f.one.write(limit)
	}
	return out
}

func (f several[T]) schema(service.Quota) *jsonschema.Schema {
	var nothing T
	one := f.one.schema(nothing)
	one.Required = f.required
	for _, key := range f.required {
		one.Properties[key].Default = nil
	}
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		{Type: "array", Items: one, MaxItems: jsonschema.Ptr(f.most)}, {Type: "string", Enum: []any{"max"}},
	}}
}

const deviceKey = "device"

// rates are limits of disks.
var rates = several[service.DeviceLimit]{
	resource: service.IOMax, required: []string{deviceKey}, one: oneDevice, most: service.MaxDevices, parse: service.ParseDevices,
	of: func(list []service.DeviceLimit) (service.Quota, error) {
		for i := range list {
			for r, rate := range list[i].Rates {
				if rate == 0 { // left out
					list[i].Rates[r] = service.Unlimited
				}
			}
		}
		return service.OfDevices(list)
	},
}

// weights are shares of disks.
var weights = several[service.DeviceWeight]{
	resource: service.IODeviceWeight, required: []string{deviceKey, "weight"}, most: service.MaxDevices,
	parse: service.ParseDeviceWeights, of: service.OfDeviceWeights,
	one: object[service.DeviceWeight]{keys: []key[service.DeviceWeight]{
		at(deviceKey, aboutDevice, text{max: 1024, line: true}, func(w *service.DeviceWeight) *string { return &w.Device }).needed(),
		at("weight", "Its share; others have that of io_weight.", whole[uint64]{low: 1, high: 10000}, func(w *service.DeviceWeight) *uint64 { return &w.Weight }).needed(),
	}},
}

// hugePages are limits of memory in huge pages.
var hugePages = several[service.HugePages]{
	resource: service.HugetlbMax, required: []string{"page_size", "max"}, most: service.MaxHugePages,
	parse: service.ParseHugePages, of: service.OfHugePages,
	one: object[service.HugePages]{keys: []key[service.HugePages]{
		at("page_size", "Size of the pages, such as 2MiB or 1GiB.", size{8 << 10, 1 << 40}, func(h *service.HugePages) *uint64 { return &h.Page }).needed(),
		at("max", "Memory in such pages, a whole number of them.", size{0, 1 << 50}, func(h *service.HugePages) *uint64 { return &h.Max }).needed(),
	}},
}

const aboutDevice = "Path of a disk, of a part of it, or of a file on it; or its number, such as 8:0."

var oneDevice = object[service.DeviceLimit]{keys: []key[service.DeviceLimit]{
	at(deviceKey, aboutDevice,
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
