# Run by mmdebstrap: downloads the newest cloud kernel to $KERNEL_DIR. What it depends on otherwise
# (a maker of initramfs, module tools) is of no use here.
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$KERNEL_DIR"
# A release may keep the kernel in one package or split it in several.
parts() { apt-cache depends --important "$1" | sed -nE 's/^ +Depends: (linux-(image|binary|modules)-[^ <]+)$/\1/p'; }
image=$(parts linux-image-cloud-"$(dpkg --print-architecture)")
test -n "$image"
apt-get -q -o APT::Sandbox::User=root download $image $(for each in $image; do parts "$each"; done)
