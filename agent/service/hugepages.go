package service

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// HugePages is how many bytes a service may have in huge pages of one size.
type HugePages struct {
	Page uint64 // size of a page, a power of two
	Max  uint64 // whole pages
}

// MaxHugePages bounds a list of huge pages: no machine has more sizes.
const MaxHugePages = 16

// ParseHugePages reads SIZE:BYTES for each size of page, with blanks between, both as
// ParseSize does. They come back in the order of their sizes, each named once.
func ParseHugePages(text string) ([]HugePages, error) {
	var list []HugePages
	for word := range strings.FieldsSeq(text) {
		size, limit, ok := strings.Cut(word, ":")
		if !ok {
			return nil, fmt.Errorf("%.40q lacks its limit; write it as in 2MiB:64MiB", word)
		}
		page, err := ParseSize(size)
		if err != nil {
			return nil, err
		}
		most, err := ParseSize(limit)
		if err != nil {
			return nil, err
		}
		list = append(list, HugePages{page, most})
	}
	return list, checkHugePages(list)
}

// checkHugePages sorts list, and tells what is wrong with it.
func checkHugePages(list []HugePages) error {
	const leastPage, mostPage, most = 8 << 10, 1 << 40, 1 << 50
	slices.SortFunc(list, func(a, b HugePages) int { return cmp.Compare(a.Page, b.Page) })
	if len(list) > MaxHugePages {
		return fmt.Errorf("names %d sizes of pages; at most %d are allowed", len(list), MaxHugePages)
	}
	for i, h := range list {
		page, limit := FormatSize(h.Page), FormatSize(h.Max)
		switch {
		case h.Page < leastPage || h.Page > mostPage || h.Page&(h.Page-1) != 0:
			return fmt.Errorf("%s is no size of huge pages; write one as in 2MiB or 1GiB", page)
		case h.Max%h.Page != 0:
			return fmt.Errorf("%s is no whole number of pages of %s", limit, page)
		case h.Max > most:
			return fmt.Errorf("%s of pages of %s is more than %s", limit, page, FormatSize(most))
		case i > 0 && list[i-1].Page == h.Page:
			return fmt.Errorf("pages of %s are named twice", page)
		}
	}
	return nil
}

// OfHugePages is a Quota of list, Unlimited if that is empty.
func OfHugePages(list []HugePages) (Quota, error) {
	if len(list) == 0 {
		return Of(Unlimited), nil
	}
	err := checkHugePages(list)
	words := make([]string, len(list))
	for i, h := range list {
		words[i] = FormatSize(h.Page) + ":" + FormatSize(h.Max)
	}
	return OfText(strings.Join(words, " ")), err
}
