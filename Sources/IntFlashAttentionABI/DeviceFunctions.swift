// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
public import CIntFlashAttention
import IntFlashAttention
import IntFlashAttentionCUDA

extension PlanObject {
  /// The kernel of a plan for a GPU.
  fileprivate func deviceKernel() throws(AttentionError) -> CUDAKernel {
    guard let kernel = plan.kernel as? CUDAKernel else {
      throw AttentionError(
        .unsupported,
        "the plan is for backend '\(plan.summary.backend)'; tensors in device memory are for plans "
          + "of backend 'cuda'"
      )
    }
    return kernel
  }
}

extension CallOperands {
  /// The operands of a call on a GPU.
  fileprivate func checked(by plan: AttentionPlan) throws(AttentionError) -> AttentionOperands {
    for (name, isGiven) in [
      ("mask", mask != nil), ("alibi_slopes", alibiSlopes != nil), ("sinks", sinks != nil),
    ] where isGiven {
      throw AttentionError(
        .unsupported,
        "\(name) is given; backend 'cuda' takes the masks of intfa_options only"
      )
    }
    var operands = try plan.check(
      query: query.view,
      key: key.view,
      value: value.view,
      output: output.mutableView
    )
    if let logSumExp { try plan.add(logSumExp: logSumExp.mutableView, to: &operands) }
    return operands
  }
}

private func stream(
  _ handle: UnsafeMutableRawPointer?,
  _ kernel: CUDAKernel
) throws(AttentionError) -> CUDAStream {
  unsafe try CUDAStream(unsafeHandle: UInt(bitPattern: handle), on: kernel.device)
}

@c @implementation
public func intfa_plan_get_workspace_size(
  _ plan: OpaquePointer!,
  _ byte_count: UnsafeMutablePointer<Int64>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try Handle.object(plan, "plan", as: PlanObject.self)
    let target = unsafe try require(byte_count, "byte_count")
    unsafe target.pointee = Int64(try object.deviceKernel().workspaceByteCount)
  }
}

@c @implementation
public func intfa_plan_enqueue(
  _ plan: OpaquePointer!,
  _ operands: UnsafePointer<intfa_operands>!,
  _ workspace: UnsafeMutableRawPointer!,
  _ stream: UnsafeMutableRawPointer!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try Handle.object(plan, "plan", as: PlanObject.self)
    let operands = unsafe try CallOperands(operands)
    let kernel = try object.deviceKernel()
    try kernel.enqueue(
      operands.checked(by: object.plan),
      workspace: UInt(bitPattern: workspace),
      on: unsafe try IntFlashAttentionABI.stream(stream, kernel)
    )
  }
}

@c @implementation
public func intfa_plan_check(
  _ plan: OpaquePointer!,
  _ workspace: UnsafeRawPointer!,
  _ stream: UnsafeMutableRawPointer!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try Handle.object(plan, "plan", as: PlanObject.self)
    let kernel = try object.deviceKernel()
    try kernel.check(
      workspace: UInt(bitPattern: workspace),
      on: unsafe try IntFlashAttentionABI.stream(stream, kernel)
    )
  }
}
