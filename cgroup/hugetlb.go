package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// hugetlbFiles stands for the files of all sizes of pages, two for each: a page counts
// in hugetlb.SIZE.max when it is touched, and above that the process gets SIGBUS; it
// counts in hugetlb.SIZE.rsvd.max when it is mapped, and above that mmap(2) fails with
// ENOMEM, which a program can deal with. Both are set alike: reservations come first
// (Documentation/admin-guide/cgroup-v1/hugetlb.rst), and the other one holds of pages
// that somebody else has reserved.
const hugetlbFiles = "hugetlb.*.max"

const sysHugePages = "/sys/kernel/mm/hugepages"

// hugePageSizes lists the sizes that this host has, in bytes, none where its kernel has
// no huge pages. They are the same until the next boot. A variable for tests.
var hugePageSizes = sync.OnceValues(func() ([]uint64, error) { return hugePageSizesIn(sysHugePages) })

// hugePageSizesIn reads them from a folder that has one for each.
func hugePageSizesIn(folder string) ([]uint64, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var sizes []uint64
	for _, e := range entries {
		number, ok := strings.CutSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")
		if n, err := strconv.ParseUint(number, 10, 54); ok && err == nil {
			sizes = append(sizes, n<<10)
		}
	}
	slices.Sort(sizes)
	return sizes, err
}

// hugetlbFile is the file of a size: the kernel writes that with the largest unit, 2MB
// or 1GB, in powers of 1024.
func hugetlbFile(page uint64, which string) string {
	size := strconv.FormatUint(page>>10, 10) + "KB"
	switch {
	case page >= 1<<30:
		size = strconv.FormatUint(page>>30, 10) + "GB"
	case page >= 1<<20:
		size = strconv.FormatUint(page>>20, 10) + "MB"
	}
	return "hugetlb." + size + "." + which
}

// The limits of a size, the stricter first.
var hugetlbLimits = []string{"rsvd.max", "max"}

// readHugePages reads what holds of each size: the lesser of both limits. The error is
// ENOENT where there is none.
func readHugePages(d *dir) (service.Quota, error) {
	sizes, err := hugePageSizes()
	if err == nil && len(sizes) == 0 {
		err = fmt.Errorf("%s: %w", sysHugePages, unix.ENOENT)
	}
	if err != nil {
		return service.Quota{}, err
	}
	var list []service.HugePages
	for _, page := range sizes {
		least := uint64(service.Unlimited)
		for _, which := range hugetlbLimits {
			file := hugetlbFile(page, which)
			text, err := d.read(file)
			if which != "max" && errors.Is(err, unix.ENOENT) {
				continue // before Linux 5.7
			}
			if err != nil {
				return service.Quota{}, err
			}
			n, err := number(text)
			if err != nil {
				return service.Quota{}, fmt.Errorf("%s/%s holds %q: %w", d.Name(), file, text, err)
			}
			least = min(least, n)
		}
		if least != service.Unlimited {
			list = append(list, service.HugePages{Page: page, Max: least})
		}
	}
	return service.OfHugePages(list)
}

// hasHugePages tells whether d limits huge pages.
func (d *dir) hasHugePages() (bool, error) {
	sizes, err := hugePageSizes()
	if err != nil || len(sizes) == 0 {
		return false, err
	}
	return d.has(hugetlbFile(sizes[0], "max"))
}

// HugePagesInUseError says that a service has more huge pages than it shall have: the
// kernel takes none of them away, and refuses the limit (EBUSY).
type HugePagesInUseError struct {
	Page, Max uint64
	err       error
}

func (e *HugePagesInUseError) Error() string {
	return fmt.Sprintf("it has more than %s in pages of %s: %v", service.FormatSize(e.Max), service.FormatSize(e.Page), e.err)
}

func (e *HugePagesInUseError) Unwrap() error { return e.err }

// setHugePages limits pages of the sizes that q names and no others, and reads that
// back. Where one can not be set all are as they were.
func setHugePages(d *dir, q service.Quota) error {
	before, err := readHugePages(d)
	if err != nil {
		return err
	}
	if err := writeHugePages(d, q); err != nil {
		return errors.Join(err, writeHugePages(d, before))
	}
	now, err := readHugePages(d)
	if err == nil && now != q {
		r := service.HugetlbMax
		err = fmt.Errorf("%s/%s hold %s after %s was written", d.Name(), hugetlbFiles, r.Format(now), r.Format(q))
	}
	return err
}

func writeHugePages(d *dir, q service.Quota) error {
	sizes, err := hugePageSizes()
	if err != nil {
		return err
	}
	list, err := service.ParseHugePages(q.Text)
	if err != nil {
		return err
	}
	for _, page := range sizes {
		most := uint64(service.Unlimited)
		if i := slices.IndexFunc(list, func(h service.HugePages) bool { return h.Page == page }); i >= 0 {
			most = list[i].Max
		}
		for _, which := range hugetlbLimits {
			err := d.write(hugetlbFile(page, which), rateText(most))
			switch {
			case which != "max" && errors.Is(err, unix.ENOENT):
			case errors.Is(err, unix.EBUSY):
				return &HugePagesInUseError{page, most, err}
			case err != nil:
				return err
			}
		}
	}
	return nil
}

// lackOfHugePages tells which sizes of q the host has not, "" for none.
func lackOfHugePages(q service.Quota) string {
	if q.Text == "" {
		return ""
	}
	list, err := service.ParseHugePages(q.Text)
	sizes, sizesErr := hugePageSizes()
	if err != nil || sizesErr != nil {
		return "" // Resource.Check tells, or the limit is not enforced
	}
	var none, has []string
	for _, h := range list {
		if !slices.Contains(sizes, h.Page) {
			none = append(none, service.FormatSize(h.Page))
		}
	}
	if len(none) == 0 {
		return ""
	}
	for _, page := range sizes {
		has = append(has, service.FormatSize(page))
	}
	return fmt.Sprintf("%s asks for pages of %s, and the host has no such, only of %s", service.HugetlbMax, strings.Join(none, ", "), strings.Join(has, ", "))
}

// fewerHugePages is what holds of two limits, and whether the second makes a difference.
func fewerHugePages(one, other service.Quota) (service.Quota, bool) {
	list, err := service.ParseHugePages(one.Text)
	more, moreErr := service.ParseHugePages(other.Text)
	if err != nil || moreErr != nil {
		return one, false
	}
	differs := false
	for _, limit := range more {
		i := slices.IndexFunc(list, func(h service.HugePages) bool { return h.Page == limit.Page })
		switch {
		case i < 0:
			list, differs = append(list, limit), true
		case limit.Max < list[i].Max:
			list[i].Max, differs = limit.Max, true
		}
	}
	q, err := service.OfHugePages(list)
	return q, differs && err == nil
}
