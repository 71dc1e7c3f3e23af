import CAttentionKernels
import IntFlashAttention
import Testing

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// What the process may use of the machine, read from files of any machine.
@Suite struct CPUProcessorsTests {
  private func set(_ text: String) -> [Int]? {
    var set = intfa_processor_set()
    guard unsafe intfa_parse_processor_list(text, &set) else {
      #expect(unsafe intfa_processor_set_count(&set) == 0)
      return nil
    }
    let members = (0..<Int(INTFA_MAX_PROCESSORS)).filter {
      unsafe intfa_has_processor(&set, Int32($0))
    }
    #expect(unsafe Int(intfa_processor_set_count(&set)) == members.count)
    return members
  }

  @Test func processorLists() {
    #expect(set("0") == [0])
    #expect(set("0-3\n") == [0, 1, 2, 3])
    #expect(set("1,64-66,8191\n") == [1, 64, 65, 66, 8191])
    #expect(set("8190-9000,99999") == [8190, 8191])
    for text in ["", "\n", "a", "1-", "-1", "3-1", "1,,2", "1,", "1 2", "99999999999999999999"] {
      #expect(set(text) == nil, "\(text)")
    }
    var set = intfa_processor_set()
    #expect(unsafe intfa_parse_processor_list("0", &set))
    for outside in [-1, Int32(INTFA_MAX_PROCESSORS), .max, .min] {
      #expect(unsafe !intfa_has_processor(&set, outside))
    }
  }

  @Test func groupLimits() {
    #expect(unsafe intfa_parse_cpu_max("max 100000\n") == 0)
    #expect(unsafe intfa_parse_cpu_max("200000 100000\n") == 2)
    #expect(unsafe intfa_parse_cpu_max("50000 100000") == 0.5)
    for text in ["", "max", "200000", "x 100000", "-1 100000", "100000 0"] {
      #expect(unsafe intfa_parse_cpu_max(text) == 0, "\(text)")
    }
    #expect(unsafe intfa_parse_cfs_quota("150000\n", "100000\n") == 1.5)
    #expect(unsafe intfa_parse_cfs_quota("-1\n", "100000\n") == 0)
    #expect(unsafe intfa_parse_cfs_quota("", "") == 0)
  }

  @Test func defaultThreadsAreCoresWithinTheLimit() {
    func threads(_ cores: Int32, limit: Double) -> Int32 {
      intfa_default_thread_count(intfa_processors(allowed: 2 * cores, cores: cores, limit: limit))
    }
    #expect(threads(8, limit: 0) == 8)
    #expect(threads(8, limit: 100) == 8)
    #expect(threads(8, limit: 8) == 8)
    #expect(threads(8, limit: 2.5) == 3)
    #expect(threads(8, limit: 2) == 2)
    #expect(threads(8, limit: 0.25) == 1)
  }

  @Test func thisMachine() {
    let found = CPUProcessors.found
    #expect(found.threadCount >= 1)
    #expect(found.threadCount <= found.coreCount)
    #expect(found.coreCount <= found.allowedCount)
    #expect(found.timeLimit.map { $0 > 0 } ?? true)
    #expect(ThreadPool.shared.threadCount == found.threadCount)
    #expect(ThreadPool.shared.largestThreadCount == found.allowedCount)
  }

  @Test func siblingsOfACoreCountOnce() throws {
    try withFolder { folder in
      // Two threads a core, numbered as Linux does: 0 and 4 are one core.
      for processor in 0..<8 {
        let name = processor == 1 ? "thread_siblings_list" : "core_cpus_list"
        try write(
          "\(processor % 4),\(processor % 4 + 4)\n",
          to: "\(folder)/cpu\(processor)/topology/\(name)"
        )
      }
      func cores(_ list: String) -> Int32 {
        var allowed = intfa_processor_set()
        #expect(unsafe intfa_parse_processor_list(list, &allowed))
        return unsafe intfa_count_cores(&allowed, folder)
      }
      #expect(cores("0-7") == 4)
      #expect(cores("0-3") == 4)
      #expect(cores("0,4") == 1)
      #expect(cores("4,5") == 2)
      #expect(cores("1,2,5,6,7") == 3)
      // Processors without files.
      #expect(cores("0,4,8,9") == 3)
    }
  }

  @Test func theSmallestLimitOfTheGroupsAboveCounts() throws {
    try withFolder { folder in
      try write("400000 100000\n", to: "\(folder)/cpu.max")
      try write("max 100000\n", to: "\(folder)/a/cpu.max")
      try write("300000 100000\n", to: "\(folder)/a/b/cpu.max")
      try write("100000 100000\n", to: "\(folder)/a/b/other/cpu.max")
      func limit(_ group: String, root: String = "/") -> Double {
        unsafe intfa_control_group_limit(
          "12:cpuset:/elsewhere\n0::\(group)\n",
          """
          20 1 0:5 / /proc rw shared:1 - proc proc rw
          30 20 0:6 \(root) \(folder) rw shared:2 - cgroup2 cgroup2 rw,nsdelegate

          """
        )
      }
      #expect(limit("/") == 4)
      #expect(limit("/a") == 4)
      #expect(limit("/a/b") == 3)
      #expect(limit("/a/b/c/d") == 3)
      #expect(limit("/a/b/other") == 1)
      // A container sees its own group as the top of the mount.
      #expect(limit("/pods/x/a/b", root: "/pods/x") == 3)
      #expect(limit("/pods/x", root: "/pods/x") == 4)
      #expect(limit("/pods/xy", root: "/pods/x") == 4)
    }
  }

  @Test func version1GroupsOfTheController() throws {
    try withFolder { folder in
      try write("-1\n", to: "\(folder)/cpu.cfs_quota_us")
      try write("100000\n", to: "\(folder)/cpu.cfs_period_us")
      try write("150000\n", to: "\(folder)/job/cpu.cfs_quota_us")
      try write("100000\n", to: "\(folder)/job/cpu.cfs_period_us")
      func limit(_ membership: String, options: String = "rw,cpu,cpuacct") -> Double {
        unsafe intfa_control_group_limit(
          membership,
          "31 30 0:29 / \(folder) rw,relatime shared:9 - cgroup cgroup \(options)\n"
        )
      }
      #expect(limit("5:cpuset:/x\n4:cpu,cpuacct:/job\n") == 1.5)
      #expect(limit("4:cpuacct,cpu:/job/step\n", options: "rw,cpu") == 1.5)
      #expect(limit("4:cpu:/\n") == 0)
      #expect(limit("5:cpuset:/job\n") == 0)
      #expect(limit("4:cpu:/job\n", options: "rw,cpuset") == 0)
      #expect(limit("") == 0)
      #expect(limit("nonsense\n4:cpu:/job") == 1.5)
      #expect(
        unsafe intfa_control_group_limit("4:cpu:/job\n", "31 30 0:29 / \(folder) - cgroup\n") == 0
      )
    }
  }

  private func withFolder(_ body: (String) throws -> Void) throws {
    let folder = FileManager.default.temporaryDirectory
      .appendingPathComponent("intfa-processors-\(UInt64.random(in: 0...UInt64.max))").path
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try body(folder)
  }

  private func write(_ text: String, to path: String) throws {
    let folder = String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    try text.write(toFile: path, atomically: false, encoding: .utf8)
  }
}
