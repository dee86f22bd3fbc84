#!/bin/sh
# tpm-index define|there|gone: an index in the TPM's memory, in TPM 2.0's own commands (TCG: TPM 2.0 Library, part 3).
set -eu
[ "$(cat /sys/class/tpm/tpm0/tpm_version_major)" = 2 ]
exec 3<>/dev/tpm0
wanted=00000000
if [ "$1" = define ]; then
	# TPM2_NV_DefineSpace: by the owner, who has no password; index 0x01500001, of 8 bytes
	printf '\200\002\000\000\000\055\000\000\001\052\100\000\000\001\000\000\000\011\100\000\000\011\000\000\000'\
'\000\000\000\000\000\016\001\120\000\001\000\013\000\006\000\006\000\000\000\010' >&3
else
	# TPM2_NV_ReadPublic; TPM_RC_HANDLE where there is no such index
	[ "$1" = there ] || wanted=0000018b
	printf '\200\001\000\000\000\016\000\000\001\151\001\120\000\001' >&3
fi
said=$(dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1 | tr -d ' \n')
echo "the TPM answers $said"
[ "$(echo "$said" | cut -c 13-20)" = "$wanted" ]
