// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
public import CIntFlashAttention
import IntFlashAttention
import IntFlashAttentionCUDA

@c @implementation
public func intfa_version() -> UnsafePointer<CChar>! { unsafe CText.permanent(Library.version) }

@c @implementation
public func intfa_get_information(
  _ information: UnsafeMutablePointer<intfa_information>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let processors = CPUProcessors.found
    let sets = InstructionSet.supported.map(\.rawValue).joined(separator: ",")
    let precisions = Precision.allCases.map(\.rawValue).joined(separator: ",")
    var result = unsafe intfa_information()
    unsafe result.thread_count = Int32(processors.threadCount)
    unsafe result.processor_count = Int32(processors.allowedCount)
    unsafe result.core_count = Int32(processors.coreCount)
    unsafe result.instruction_sets = CText.permanent(sets)
    unsafe result.precisions = CText.permanent(precisions)
    unsafe try CStruct.write(result, to: information, "information")
  }
}

@c @implementation
public func intfa_get_instruction_set(
  _ name: UnsafeMutablePointer<UnsafePointer<CChar>?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(name, "name")
    let chosen = try CPUBackend().chosenInstructionSet()
    unsafe target.pointee = CText.permanent(chosen.rawValue)
  }
}

@c @implementation
public func intfa_get_device_count(_ count: UnsafeMutablePointer<Int32>!) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(count, "count")
    unsafe target.pointee = 0
    unsafe target.pointee = Int32(try CUDADevice.all().count)
  }
}

@c @implementation
public func intfa_get_device(
  _ device: Int32,
  _ description: UnsafeMutablePointer<intfa_device>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let devices = try CUDADevice.all()
    guard devices.indices.contains(Int(device)) else {
      throw AttentionError(
        .unavailable,
        "there is no CUDA device \(device); the driver knows \(devices.count)"
      )
    }
    let found = devices[Int(device)]
    var result = intfa_device()
    result.multiprocessor_count = Int32(found.multiprocessorCount)
    result.major = Int32(found.major)
    result.minor = Int32(found.minor)
    result.memory_byte_count = Int64(found.memoryByteCount)
    unsafe withUnsafeMutableBytes(of: &result.name) { name in
      unsafe name.copyBytes(from: Array(found.name.utf8.prefix(name.count - 1)))
    }
    unsafe try CStruct.write(result, to: description, "description")
  }
}
