package cgroup

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// decodeList reads a list of CPUs or nodes; an empty one limits nothing.
func decodeList(text string) (service.Quota, error) {
	list, err := service.ParseNumbers(text)
	if err != nil || len(list) > 0 {
		return service.OfText(list.String()), err
	}
	return service.Of(service.Unlimited), nil
}

// granted reads which of the CPUs or nodes of r the kernel lets d use.
func granted(d *dir, r service.Resource) (service.Numbers, error) {
	file := limitFiles[r].name + ".effective"
	text, err := d.read(file)
	if err != nil {
		return nil, err
	}
	list, err := service.ParseNumbers(text)
	if err != nil {
		return nil, fmt.Errorf("%s/%s holds %q: %w", d.Name(), file, text, err)
	}
	return list, nil
}

// fill lifts the limit of r where the kernel keeps a list from becoming empty while
// processes are in the group (as Linux 6.12 does): it lists all that the host has.
func (d *dir) fill(r service.Resource) error {
	all, err := d.tree.Group("/").granted(r)
	if err != nil {
		return err
	}
	return applyOne(d, r, service.OfText(all.String()))
}

// checkEffective finds a list that the kernel keeps and does not follow: where it can
// grant none of it, it grants all that the group above has (cgroup-v2.rst, cpuset.cpus).
func checkEffective(d *dir, r service.Resource, q service.Quota) error {
	if r.Unit() != service.List || q.Value == service.Unlimited {
		return nil
	}
	asked, err := service.ParseNumbers(q.Text)
	if err != nil {
		return err
	}
	got, err := granted(d, r)
	if err != nil {
		return err
	}
	if len(got.Without(asked)) > 0 {
		return fmt.Errorf("%s grants %s after %s was asked for", d.Name(), got, asked)
	}
	return nil
}

// effective is what g may use of r, and the highest group that lets nobody have more;
// "" if that is own, the limit of g itself, or all that the host has.
func (g Group) effective(r service.Resource, own service.Quota) (q service.Quota, setBy string, err error) {
	has, err := g.granted(r)
	if err != nil {
		return q, "", err
	}
	q = service.OfText(has.String())
	if q == own {
		return q, "", nil
	}
	setBy = g.Parent().path
	for level := g; level.path != "/"; {
		level = level.Parent()
		there, err := level.granted(r)
		if errors.Is(err, unix.ENOENT) { // the tree is a part of another
			break
		}
		if err != nil {
			return q, "", err
		}
		if there.String() != q.Text {
			continue
		}
		setBy = level.path
		if limits, err := level.limits(r); err == nil && !limits { // the root of the host
			setBy = ""
		}
	}
	return q, setBy, nil
}

// limits tells whether g can have a limit of r at all, which the root of the host can not.
func (g Group) limits(r service.Resource) (bool, error) {
	d, err := g.open()
	if err != nil {
		return false, err
	}
	defer d.Close()
	return d.has(limitFiles[r].name)
}

func (g Group) granted(r service.Resource) (service.Numbers, error) {
	d, err := g.open()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return granted(d, r)
}

// Lack is a limit that asks for what the host has not.
type Lack struct {
	Resource service.Resource
	Why      string
}

// Lacks finds the limits of l that ask for CPUs, memory nodes, disks or sizes of huge
// pages which this host has not, and for weights of disks that have none.
func (t Tree) Lacks(l service.Limits) (lacks []Lack) {
	if q := l[service.IOMax]; q.Text != "" {
		if _, err := byNumber(q); err != nil {
			lacks = append(lacks, Lack{service.IOMax, fmt.Sprintf("%s: %v", service.IOMax, err)})
		}
	}
	if why := t.lackOfWeights(l[service.IODeviceWeight]); why != "" {
		lacks = append(lacks, Lack{service.IODeviceWeight, fmt.Sprintf("%s: %s", service.IODeviceWeight, why)})
	}
	if why := lackOfHugePages(l[service.HugetlbMax]); why != "" {
		lacks = append(lacks, Lack{service.HugetlbMax, why})
	}
	for i, q := range l {
		r := service.Resource(i)
		if !q.Set || q.Value == service.Unlimited || r.Unit() != service.List {
			continue
		}
		asked, err := service.ParseNumbers(q.Text)
		if err != nil {
			continue // Resource.Check tells
		}
		has, err := t.Group("/").granted(r)
		if err != nil {
			continue // the controller is missing, which is told of every limit of it
		}
		if none := asked.Without(has); len(none) > 0 {
			lacks = append(lacks, Lack{r, fmt.Sprintf("%s asks for %s, and the host has no %s, only %s", r, asked, none, has)})
		}
	}
	return lacks
}
