"""What is known of Windows' answer files (Unattended Windows Setup Reference): names, and who they belong to."""

from __future__ import annotations

from collections.abc import Iterator

from imagesmith.answers._words import misspelt, words
from imagesmith.answers._xml import Element

NAMESPACE = "urn:schemas-microsoft-com:unattend"
_WCM = "http://schemas.microsoft.com/WMIConfig/2002/State"
_TOKEN = "31bf3856ad364e35"  # of everything that Microsoft signs for Windows
_PASSES = words("windowsPE offlineServicing generalize specialize auditSystem auditUser oobeSystem")
_ARCHITECTURES = words("x86 amd64 arm arm64 wow64 ia64")
_ACTIONS = words("add modify remove")
_PARTS = words("settings servicing offlineImage")
_ATTRIBUTES = words("name processorArchitecture publicKeyToken language versionScope")
_OF_WINDOWS = words(
    """AppX-Deployment-Server AuthBrokerUI AutoPlay Browser-Choice CEIPEnable Client-Core Client-Desktop-Required
    Core-ComponentManagement Deployment DeviceGuard-Unattend DirectoryServices-ADAM DNS-Client
    DNS-Server-Service ECCD Embedded-BootExp EmbeddedLogon EnhancedStorage-Adm ErrorReportingCore
    FailoverCluster-Service Fax-Service GPIOButtons Help-Client HelpAndSupport HomeGroup-ListSvc
    IE-ClientNetworkProtocolImplementation IE-ESC IE-InternetExplorer IE-InternetExplorer-Optional
    International-Core International-Core-WinPE iSCSI_Initiator IsolatedUserMode LUA-Settings MapControl-Desktop
    MicrosoftEdgeBHO MobilePC-Sensors-API NDIS NetBT NetworkBridge NetworkLoadBalancing-Core NFS-Admin
    NFS-ClientCore NFS-OpenPortMapper NFS-ServerCore OutOfBoxExperience P2P-PNRP PeerDist PeerToPeerAdmin
    Photos-Sample PnpCustomizationsNonWinPE PnpCustomizationsWinPE PnPSysprep powercpl PowerCPL
    Printing-Spooler-Core Printing-Spooler-Core-Localspl Printing-Spooler-Networkclient Rasapi-MDM RasServer
    RemoteAssistance-Exe Remoteassistance-exe SecureStartup-FilterDriver Security-SPP Security-SPP-UX
    Server-Setup ServerManager-SvrMgrNc Setup SharedAccess Shell-Setup ShellInputHost Sidebar SMBServer
    SNMP-Service SQMApi SQMAPI stobject StorageMigrationService Store-Client-UI SystemRestore-Main
    SystemSettings-ImmersiveBrowser TabletPC-Platform TapiSetup TCPIP TerminalServices-AppServer-Licensing
    TerminalServices-LicenseServer TerminalServices-LocalSessionManager TerminalServices-Publishing-WMIProvider
    TerminalServices-RDP-WinStationExtensions TerminalServices-RemoteConnectionManager TextServicesFramework
    TPM-Tasks TwinUI UnattendedJoin UserExperience-Desktop WDF-KernelLibrary Web-Services-for-Management-Core
    WebcamExperience WebDAV WiFiNetworkManager WinPE WinRE-RecoveryAgent wlansvc WLANSVC Workstationservice"""
)
_COMPONENTS = frozenset(f"Microsoft-Windows-{name}" for name in _OF_WINDOWS) | words(
    """Audio-AudioCore CorruptedFileRecovery-Client CorruptedFileRecovery-Server MicrosoftWindows-WMPNSS-Service
    Networking-MPSSVC-Svc Security-Malware-Windows-Defender Windows-Defender"""
)
_SETTINGS = words(
    """AcceptEula AdministratorPassword AsynchronousCommand AutoLogon AutoPartition CommandLine ComputerName
    ConfigureChatAutoInstall CopyProfile CreatePartition CreatePartitions Credentials DataImage Description
    DhcpEnabled Diagnostics DisableDynamicUpdate DisableEncryptedDiskProvisioning DisableWER DiskConfiguration
    Display DisplayName DNSServerSearchOrder DomainAccount DomainAccountList DomainAccounts
    DoNotCleanUpNonPresentDevices DriverPaths
    DynamicUpdate EnableAdapterDomainNameRegistration EnableFirewall EnableLUA EnableNetwork fDenyTSConnections
    FirewallGroup FirewallGroups FirstLogonCommands FolderLocations FullName HideEULAPage HideLocalAccountScreen
    HideOEMRegistrationScreen HideOnlineAccountScreens HideWirelessSetupInOOBE Identification Identifier
    ImageInstall InputLocale InstallFrom InstallTo InstallToAvailablePartition Interface Interfaces Ipv4Settings
    Ipv6Settings JoinDomain JoinWorkgroup LabelFormat LocalAccount LocalAccounts LogonCommands LogonCount
    MachineObjectOU MachinePassword Manufacturer MetaData Metric ModifyPartition ModifyPartitions
    NetworkLocation OEMInformation OrderPartitionID Organization OSImage PartitionID Password PathAndCredentials
    PersistAllDeviceInstalls PlainText ProductKey ProtectYourPC RegisteredOrganization RegisteredOwner
    RequiresUserInput ResolutionTimeout RouterDiscoveryEnabled RunAsynchronous RunAsynchronousCommand
    RunSynchronous RunSynchronousCommand SetupUILanguage ShowWindowsLive SkipAutoActivation SkipMachineOOBE
    SkipUserOOBE SynchronousCommand SystemLocale TimeZone UILanguage UILanguageFallback UnattendEnableRetailDemo
    UnicastIpAddresses UnsecureJoin UpgradeData UseConfigurationSet UserAccounts UserAuthentication UserData
    UserLocale Username VisualEffects WillReboot WillShowUI WillWipeDisk WindowsFeatures"""
)


def problems(root: Element) -> Iterator[tuple[str, int]]:
    """What Windows Setup would not take, as far as that is sure, and slips of the pen; with the lines."""
    if root.name != "unattend" or root.namespace != NAMESPACE:
        yield f'the outermost element is <unattend xmlns="{NAMESPACE}">, not <{root.name}>', root.line
        return
    for part in root.children:
        if part.namespace != NAMESPACE:
            continue
        if part.name == "settings":
            yield from _settings(part)
        elif near := misspelt(part.name, _PARTS):
            yield f"there is no <{part.name}> in <unattend>; did you mean '{near}'?", part.line


def _settings(part: Element) -> Iterator[tuple[str, int]]:
    given = part.attributes.get("pass")
    if given is None:
        yield f"<settings> must tell its pass: {', '.join(sorted(_PASSES))}", part.line
    elif given not in _PASSES:
        near = misspelt(given, _PASSES) or next((one for one in _PASSES if one.lower() == given.lower()), "")
        yield (f"there is no pass '{given}'" + (f"; did you mean '{near}'?" if near
               else f"; there are {', '.join(sorted(_PASSES))}")), part.line  # fmt: skip
    for component in part.children:
        if component.namespace != NAMESPACE:
            continue
        if component.name == "component":
            yield from _component(component)
        elif near := misspelt(component.name, frozenset({"component"})):
            yield f"there is no <{component.name}> in <settings>; did you mean '{near}'?", component.line


def _component(component: Element) -> Iterator[tuple[str, int]]:
    line, name = component.line, component.attributes.get("name")
    if name is None:
        yield "<component> must tell its name", line
        return
    for attribute in component.attributes:
        if near := misspelt(attribute, _ATTRIBUTES):
            yield f"<component> has no '{attribute}'; did you mean '{near}'?", line
    architecture = component.attributes.get("processorArchitecture")
    if architecture is not None and architecture.lower() not in _ARCHITECTURES:
        yield (f"{name}: there is no processorArchitecture '{architecture}'; there are "
               f"{', '.join(sorted(_ARCHITECTURES))}"), line  # fmt: skip
    token = component.attributes.get("publicKeyToken")
    if name.startswith("Microsoft-Windows-") and token is not None and token.lower() != _TOKEN:
        yield f"{name}: its publicKeyToken is {_TOKEN}", line
    if near := misspelt(name, _COMPONENTS):
        yield f"there is no component '{name}'; did you mean '{near}'?", line
    for element in component.walk():
        action = element.attributes.get(f"{_WCM} action")
        if action is not None and action not in _ACTIONS:
            yield f"<{element.name}>: wcm:action is {', '.join(sorted(_ACTIONS))}, not '{action}'", element.line
        if element is not component and (near := misspelt(element.name, _SETTINGS)):
            yield f"there is no setting <{element.name}>; did you mean '{near}'?", element.line
